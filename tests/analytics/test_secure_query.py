"""Queries whose sums are secure: the plain answers without noise, noise from the clients, charged before a share is asked for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from qedge import query
from qedge.analytics.sums import LocalSums
from qedge.config import Settings
from qedge.data.client_columns import ClientColumns
from qedge.errors import InvalidPrivacy, RoundFailed
from qedge.federated.secure_node import Said
from qedge.job import SecureAggregation
from qedge.records import Records
from qedge.runs.query_preparation import prepare_query, recorded_plan
from qedge.runs.querying import Inquiry, complete_query
from tests.analytics.populations import query_of

STATISTICS = [
    {"kind": "count"},
    {"kind": "mean", "column": "alcohol", "range": [10, 16]},
    {"kind": "histogram", "column": "label", "categories": ["class_0", "class_1"]},
    {"kind": "heavy-hitters", "column": "label", "length": 2},
]


class Cut(Exception):
    """A coordinator stopped dead, at a point that the test chose."""


class FaultySums(LocalSums):
    """Clients of this process, of whom the first `silent` say nothing at a step, once; or whose server is cut off there."""

    at, silent, cut = "", 0, False

    def secure_step(self, name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        if name == self.at:
            self.at = ""
            if self.cut:
                raise Cut
            for place in sorted(messages)[: self.silent]:
                self.node.at_work.pop(place, None)
        return super().secure_step(name, messages, deadline_s)


def _faulty(at: str, silent: int = 0, *, cut: bool = False):
    def make(columns: ClientColumns, secure: SecureAggregation | None) -> FaultySums:
        sums = FaultySums(columns, secure)
        sums.at, sums.silent, sums.cut = at, silent, cut
        return sums

    return make


@pytest.mark.parametrize("secure", [{}, {"group_size": 10, "server": "honest-but-curious"}])
def test_without_privacy_the_answers_are_the_plain_ones(settings: Settings, secure: dict[str, object]):
    plain = query(query_of(*STATISTICS, privacy="none", max_rows=178), backend="serial", settings=settings)
    kept = query(query_of(*STATISTICS, privacy="none", max_rows=178, secure_aggregation=secure), backend="serial", settings=settings)
    assert kept.answers == plain.answers


def test_under_privacy_the_noise_is_the_clients_and_the_server_is_who_it_is_charged_against(settings: Settings):
    """178 rows; the count's standard deviation, with shares of 40 clients where 19 are counted on, is reported and held to."""
    asked = query_of(*STATISTICS[:3], secure_aggregation={})
    folder = prepare_query(asked, settings)
    plan = recorded_plan(folder)
    assert plan is not None
    assert plan.once is not None
    assert plan.once.share is not None
    assert plan.once.variance == 19 * plan.once.share.variance  # 27 of 40 survive at least, 8 may collude
    assert plan.once.share.honest == 19
    result = complete_query(Inquiry(folder, Records.open(settings.home), LocalSums))
    statement = result["statement"]
    assert str(statement["adversary"]).startswith("the server")
    assert "a share of the noise from each client" in str(statement["mechanism"])
    assert statement["clients_in_the_sum"] == 40
    assert float(statement["epsilon"]) <= 8
    assert Records.open(settings.home).ledger.scope("wine").spent == pytest.approx(float(statement["epsilon"]))
    rows = result["answers"][0]["estimates"][0]
    assert rows["low"] < rows["value"] < rows["high"]
    width = (rows["high"] - rows["low"]) / 2
    assert abs(rows["value"] - 178) < 4 * width, "eight standard deviations"


def test_clients_that_are_lost_are_neither_counted_nor_hidden(settings: Settings):
    asked = query_of({"kind": "count"}, privacy="none", max_rows=178, secure_aggregation={})
    inquiry = Inquiry(prepare_query(asked, settings), Records.open(settings.home), _faulty("mask", 10))
    sizes = np.diff(inquiry.sums.columns.offsets)
    result = complete_query(inquiry)
    assert result["answers"][0]["estimates"][0]["value"] == sizes[10:].sum()
    assert inquiry.summed == 30


@pytest.mark.parametrize(("at", "charged"), [("mask", False), ("agree", False), ("reveal", True)])
def test_a_query_that_is_cut_off_is_gone_on_with_until_shares_were_asked_for(settings: Settings, at: str, charged: bool):
    folder = prepare_query(query_of({"kind": "count"}, secure_aggregation={}), settings)
    with pytest.raises(Cut):
        complete_query(Inquiry(folder, Records.open(settings.home), _faulty(at, cut=True)))
    assert set(Records.open(settings.home).ledger.releases(folder.run)) == ({1} if charged else set())
    again = Inquiry(folder, Records.open(settings.home), LocalSums)
    if charged:
        with pytest.raises(RoundFailed, match="what it cost stays spent"):
            complete_query(again)
    else:
        assert complete_query(again)["status"] == "finished"
    assert len(Records.open(settings.home).ledger.releases(folder.run)) == 1


def test_a_group_too_small_to_hide_anybody_is_refused(settings: Settings):
    with pytest.raises(InvalidPrivacy, match="a larger group"):
        query(query_of(data={"source": "wine", "partition": {"clients": 2}}, secure_aggregation={}), backend="serial", settings=settings)
