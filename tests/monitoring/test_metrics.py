"""The table of metrics: names that Prometheus takes, and nothing recorded that is not in it."""

from __future__ import annotations

import re

import pytest

from qedge.monitoring.metrics import BY_NAME, METRICS, Metric, ignore, row


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_named_as_prometheus_asks(metric: Metric) -> None:
    assert re.fullmatch(r"qedge_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not metric.name.endswith("_seconds") or metric.unit == "seconds"
    assert metric.help
    assert not metric.help.endswith(".")
    assert (metric.kind == "histogram") == bool(metric.boundaries)
    assert list(metric.boundaries) == sorted(set(metric.boundaries))


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(METRICS)


def test_a_name_or_tag_that_is_not_in_the_table_is_an_error() -> None:
    ignore("qedge_models_served", 1)
    with pytest.raises(KeyError):
        ignore("qedge_cohort_realised", 1)
    with pytest.raises(KeyError, match="has the tags"):
        row("qedge_requests_total", {"caller": "someone"})


def test_help_texts_are_ascii_as_rays_exporter_encodes_them_in_any_locale() -> None:
    assert all(metric.help.isascii() for metric in METRICS)
