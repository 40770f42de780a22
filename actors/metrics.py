"""The rows of `qedge.monitoring.metrics` as Ray metrics, exported by Ray's Prometheus endpoint."""

from __future__ import annotations

import functools

from ray.util import metrics as carried

from qedge.monitoring.metrics import BY_NAME, row


def record(name: str, value: float, **tags: str) -> None:
    """Add to a counter, set a gauge or observe into a histogram, whichever the table says `name` is.

    Raises:
        KeyError: a name or a set of tags the table does not have.
    """
    metric = _carrier(row(name, tags).name)
    if isinstance(metric, carried.Counter):
        metric.inc(value, tags=tags)
    elif isinstance(metric, carried.Gauge):
        metric.set(value, tags=tags)
    else:
        metric.observe(value, tags=tags)


@functools.cache
def _carrier(name: str) -> carried.Counter | carried.Gauge | carried.Histogram:
    metric = BY_NAME[name]
    if metric.kind == "counter":
        return carried.Counter(name, metric.help, metric.tags)
    if metric.kind == "gauge":
        return carried.Gauge(name, metric.help, metric.tags)
    return carried.Histogram(name, metric.help, list(metric.boundaries), metric.tags)
