"""What an edge search may be asked, and which trials that makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qedge.edge.search.job import EdgeSearch, network, rate_of, rung_of
from qedge.edge.search.trial import Limits
from qedge.errors import EdgeError, InvalidJob, QEdgeError, UnknownKey, UnknownRung

ASKED = {
    "name": "digits",
    "source": "digits",
    "space": {
        "kind": {"choice": ["mlp", "cnn"]},
        "width": {"integers": [4, 32]},
        "kernel": {"choice": [3, 5]},
        "rung": {"choice": ["fp32", "binary"]},
    },
    "trials": 20,
}


def test_each_trial_is_a_network_and_a_rung_and_the_same_seed_gives_the_same() -> None:
    asked = EdgeSearch.parse(ASKED)
    points = asked.points()
    assert len(points) == 20
    assert points == EdgeSearch.parse(ASKED).points() != EdgeSearch.parse(ASKED | {"seed": 1}).points()
    for values in points:
        model = network(values)
        assert model.kind == values["kind"]
        assert (model.hidden if model.kind == "mlp" else model.channels) == (values["width"],)
        assert ("kernel" in values) == (model.kind == "cnn")
        if model.kind == "cnn":
            assert model.kernel_size == values["kernel"]
        assert rung_of(values) == values["rung"]
        assert rate_of(values) == 0.002
    assert {values["rung"] for values in points} == {"fp32", "binary"}
    assert EdgeSearch.parse(asked.plain()) == asked


def test_a_file_says_where_its_table_lies_and_changes_take_its_place(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(ASKED | {"source": "rows.csv"}))
    assert EdgeSearch.load(path, {"trials": 3}).source == str(tmp_path / "rows.csv")
    assert EdgeSearch.load(path, {"trials": 3}).trials == 3


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ({"space": {}}, InvalidJob, "space"),
        ({"space": {"colour": {"choice": [1]}}}, UnknownKey, "colour"),
        ({"space": {"width": {"choice": [0]}}, "trials": 1}, InvalidJob, "width"),
        ({"space": {"kind": {"choice": ["hybrid"]}}, "trials": 1}, InvalidJob, "mlp, cnn"),
        ({"space": {"kernel": {"choice": [4]}, "kind": {"choice": ["cnn"]}}, "trials": 1}, InvalidJob, "kernel"),
        ({"space": {"rung": {"choice": ["int7"]}}, "trials": 1}, UnknownRung, "int7"),
        ({"space": {"learning_rate": {"choice": [-1]}}, "trials": 1}, InvalidJob, "learning_rate"),
        ({"space": {"width": {"choice": [4]}}, "trials": 2}, InvalidJob, "at most the 1 points"),
        ({"trails": 3}, UnknownKey, "trials"),
        ({"trials": 0}, InvalidJob, "trials"),
        ({"name": "../x"}, InvalidJob, "name"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_its_place(wrong: dict[str, object], error: type[QEdgeError], match: str) -> None:
    with pytest.raises(error, match=match):
        EdgeSearch.parse(ASKED | wrong)


def test_limits_are_over_zero_and_say_what_is_over_them() -> None:
    limits = Limits.asked(2.0, 200.0)
    assert limits.against(1.9, 200_000) == ""
    assert limits.against(2.1, 200_001) == "2.1000 ms a row, over 2 and 200.0 kB, over 200"
    assert Limits.asked(None, None).against(1e9, 10**12) == ""
    for wrong in ((0.0, None), (None, -1.0), (float("nan"), None)):
        with pytest.raises(EdgeError, match="over 0"):
            Limits.asked(*wrong)
