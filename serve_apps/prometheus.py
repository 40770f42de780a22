"""The rows of `qedge.monitoring.metrics` in Prometheus' text format, for a process without Ray."""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from qedge.monitoring.metrics import row


class Exported:
    """Metrics of one process. For several threads at once."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._making = threading.Lock()
        self._carriers: dict[str, Counter | Gauge | Histogram] = {}

    def record(self, name: str, value: float, **tags: str) -> None:
        """Add to a counter, set a gauge or observe into a histogram, whichever the table says `name` is.

        Raises:
            KeyError: a name or a set of tags the table does not have.
        """
        carrier = self._carrier(name, tags)
        labelled = carrier.labels(**tags) if tags else carrier
        if isinstance(labelled, Counter):
            labelled.inc(value)
        elif isinstance(labelled, Gauge):
            labelled.set(value)
        else:
            labelled.observe(value)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def _carrier(self, name: str, tags: dict[str, str]) -> Counter | Gauge | Histogram:
        metric = row(name, tags)
        with self._making:
            found = self._carriers.get(name)
            if found is not None:
                return found
            if metric.kind == "counter":
                found = Counter(name, metric.help, metric.tags, registry=self._registry)
            elif metric.kind == "gauge":
                found = Gauge(name, metric.help, metric.tags, registry=self._registry)
            else:
                found = Histogram(name, metric.help, metric.tags, registry=self._registry, buckets=metric.boundaries)
            self._carriers[name] = found
            return found
