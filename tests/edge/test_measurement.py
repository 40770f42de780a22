"""What rungs cost here: really measured, in processes of their own; and the commands that build, measure and show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from qedge import TrainingJob, train
from qedge.cli import main
from qedge.config import ensure_home
from qedge.edge.hardware import providers, this_machine
from qedge.edge.ladder import Ladder
from qedge.edge.measurement import Way, choose, measure, thread_counts, worth
from qedge.edge.node import card_here, keep_card, own_card
from qedge.edge.rung import RungName
from qedge.edge.session import CPU
from qedge.errors import EdgeError, InvalidCalibration, ModelError
from qedge.security.keys import Keys
from tests.edge.conftest import JOB, Home
from tests.edge_ladders import Told, graph
from tests.edge_ladders import ladder as ladder_of

pytestmark = pytest.mark.slow
FIGURES = {"accuracy", "p50_ms", "p95_ms", "pss_bytes", "file_bytes", "load_ms", "dominated"}


def call(home: Home, *arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(main, ["edge", *arguments, "--home", str(home.settings.home), "--json"])
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_ladder_is_built_measured_kept_with_its_version_and_shown(home: Home, tmp_path: Path) -> None:
    train(TrainingJob.parse(JOB | {"name": "bare", "rounds": 1}), backend="serial", settings=home.settings)
    assert call(home, "card", "bare@champion")["error"]["code"] == "model.unknown"  # type: ignore[index]
    built = call(home, "build", "digits@champion", "--calibration", "digits", "--public", "--rungs", "fp32,int8")
    assert list(built["rungs"]) == ["fp32", "int8"]  # type: ignore[call-overload]
    for figures in built["rungs"].values():  # type: ignore[attr-defined]
        assert figures.keys() >= FIGURES
        assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
        assert 0 < figures["pss_bytes"] < 64 * 2**20
        assert set(figures["latency"]) == {"1", "8", "32"}
    shown = call(home, "card", "digits@champion", "--plot", str(tmp_path / "card.png"))
    assert shown == built
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")
    again = call(home, "build", "digits@champion", "--calibration", "digits", "--public", "--rungs", "fp32")
    assert list(call(home, "card", "digits@champion")["rungs"]) == list(again["rungs"]) == ["fp32"]  # type: ignore[call-overload]
    assert not list((home.settings.home / "edge").glob(".*"))
    measured = call(home, "measure", "digits@champion")
    assert measured["ladder"] == again["ladder"]


def test_a_card_of_another_machine_or_of_other_rungs_is_not_believed(built: Ladder, tmp_path: Path) -> None:
    card = measure(built, np.zeros((1, 64), np.float32))
    assert card.is_of(this_machine())
    keep_card(tmp_path, built.id, card)
    assert card_here(tmp_path, built) == card
    for another in ({"processor": "another"}, {"providers": (*providers(), "CUDAExecutionProvider")}):
        there = card.model_copy(update={"machine": this_machine().model_copy(update=another)})
        keep_card(tmp_path, built.id, there)
        assert card_here(tmp_path, built) == built.card
    flattered = card.rungs[1].model_copy(update={"accuracy": card.rungs[1].accuracy.model_copy(update={"value": 1.0})})
    keep_card(tmp_path, built.id, card.model_copy(update={"rungs": (card.rungs[0], flattered, *card.rungs[2:])}))
    assert card_here(tmp_path, built) == built.card


def test_each_way_to_run_a_rung_is_tried_and_the_card_says_which_is_used(built: Ladder) -> None:
    card = measure(built, np.zeros((1, 64), np.float32), provider=CPU)
    for one in card.rungs:
        assert one.cost is not None
        ways = {str(Way(CPU, prepacked, threads)) for prepacked in (False, True) for threads in thread_counts(this_machine().cores)}
        assert one.cost.tried.keys() == ways
        assert str(Way(one.cost.provider, one.cost.prepacked, one.cost.threads)) in ways
        assert all(p50_ms > 0 for p50_ms in one.cost.tried.values())


def test_a_provider_that_is_not_here_is_refused_by_name(built: Ladder) -> None:
    for run in (lambda: measure(built, np.zeros((1, 64), np.float32), provider="CPU"), lambda: built.load("fp32", provider="CPU")):
        with pytest.raises(EdgeError, match="CPUExecutionProvider"):
            run()
    assert "AzureExecutionProvider" not in providers()  # which would send rows elsewhere


def test_a_card_that_names_a_provider_which_is_not_here_is_measured_again(tmp_path: Path) -> None:
    made, filled = ladder_of(tmp_path / "ladder", {"fp32": (graph(1), Told())}, Keys.open(ensure_home(tmp_path / "home")))
    assert own_card(made, given=filled) == filled
    cost = Told().cost().model_copy(update={"provider": "CUDAExecutionProvider"})
    found = own_card(made, given=made.card.measured({"fp32": cost}, this_machine())).rungs[0].cost
    assert found is not None
    assert (found.provider, found.load_ms == cost.load_ms) == (CPU, False)


def test_a_provider_that_cannot_be_used_after_all_is_passed_over_and_not_taken_for_the_processor(
    built: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = ["CUDAExecutionProvider", *onnxruntime.get_available_providers()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: claimed)
    with pytest.warns(UserWarning, match="CUDA"), pytest.raises(ModelError, match="CUDAExecutionProvider cannot be used"):
        built.load("fp32", provider="CUDAExecutionProvider")
    with pytest.warns(UserWarning, match="CUDA"):
        assert choose(built, "int8", np.zeros((1, 64), np.float32))["provider"] == CPU


def milliseconds(**ways: tuple[float, float]) -> dict[tuple[Way, int], float]:
    """Of ways such as `CPU_mapped_2`, at one row and at 32."""
    found = {}
    for name, (single, many) in ways.items():
        provider, kind, threads = name.split("_")
        way = Way(f"{provider}ExecutionProvider", kind == "prepacked", int(threads))
        found |= {(way, 1): single, (way, 32): many}
    return found


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ({"CPU_mapped_1": (1.0, 9.0), "CPU_prepacked_1": (0.97, 8.7)}, "CPU, mapped, 1 thread"),
        ({"CPU_mapped_1": (1.0, 9.0), "CPU_prepacked_1": (1.0, 8.0)}, "CPU, prepacked, 1 thread"),
        ({"CPU_mapped_1": (1.0, 9.0), "CPU_mapped_2": (0.9, 5.0), "CPU_mapped_4": (0.7, 4.0)}, "CPU, mapped, 4 threads"),
        ({"CPU_mapped_1": (1.0, 9.0), "CPU_mapped_2": (0.6, 5.0), "CPU_mapped_4": (0.5, 4.0)}, "CPU, mapped, 2 threads"),
        ({"CPU_mapped_1": (1.0, 9.0), "OpenVINO_mapped_1": (0.9, 20.0)}, "OpenVINO, mapped, 1 thread"),
        ({"CPU_mapped_1": (1.0, 9.0), "CUDA_mapped_1": (1.1, 0.5)}, "CPU, mapped, 1 thread"),
    ],
)
def test_threads_and_prepacking_must_be_worth_what_they_take_and_the_fastest_provider_runs(
    times: dict[str, tuple[float, float]], best: str
) -> None:
    assert str(worth(milliseconds(**times))) == best


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["measure", "digits", "--provider", "TPU"], "edge.refused"),
        (["build", "digits", "--calibration", "digits", "--rungs", "fp32,int3"], "edge.unknown-rung"),
        (["build", "nobody", "--calibration", "digits"], "model.unknown"),
        (["build", "digits", "--calibration", "nowhere.csv"], "data.not-found"),
        (["build", "digits", "--calibration", "wine"], "edge.calibration"),
        (["card", "digits", "--plot", "card.txt"], "edge.refused"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(home: Home, arguments: list[str], code: str) -> None:
    if arguments[0] == "card":
        call(home, "build", "digits", "--calibration", "digits", "--public", "--rungs", "fp32")
    answer = call(home, *arguments)
    assert answer["error"]["code"] == code  # type: ignore[index]


@pytest.mark.parametrize("rows", [np.zeros((0, 64)), np.zeros((2, 63)), np.full((2, 64), np.nan), np.zeros(64)])
def test_rows_that_say_nothing_are_refused(built: Ladder, rows: np.ndarray) -> None:
    with pytest.raises(InvalidCalibration):
        measure(built, rows.astype(np.float32))


class TestRun:
    """`qedge edge run`."""

    @pytest.fixture(scope="class")
    def rows(self, home: Home, tmp_path_factory: pytest.TempPathFactory) -> str:
        call(home, "build", "digits", "--calibration", "digits", "--public", "--rungs", "fp32,int2,binary")
        path = tmp_path_factory.mktemp("rows") / "rows.npy"
        np.save(path, home.calibration.held.rows[:50])
        return str(path)

    def test_the_cheapest_rung_that_meets_what_is_required_answers_and_says_why(self, home: Home, rows: str) -> None:
        figures = call(home, "card", "digits")["rungs"]
        floor = figures["fp32"]["accuracy"]  # type: ignore[index]
        answer = call(home, "run", "digits@champion", "--require", f"accuracy={floor},p95_ms=1000", rows)
        assert figures[answer["rung"]]["accuracy"] >= floor  # type: ignore[index]
        assert {answer["rung"], *answer["passed_over"]} == {"fp32", "int2", "binary"}  # type: ignore[misc]
        right = np.array(answer["labels"]) == home.calibration.held.labels[:50]
        assert right.mean() > 0.7
        cheap = call(home, "run", "digits@champion", rows)
        best = min(figures.values(), key=lambda one: one["p95_ms"])  # type: ignore[attr-defined]
        assert figures[cheap["rung"]]["p95_ms"] <= 1.05 * best["p95_ms"]  # type: ignore[index]

    @pytest.mark.parametrize(
        ("more", "code"),
        [
            (["--require", "accuracy=0.9999"], "edge.no-rung-fits"),
            (["--memory", "1KiB"], "edge.over-budget"),
            (["--require", "speed=1"], "edge.refused"),
            (["--memory", "many"], "edge.refused"),
        ],
    )
    def test_what_no_rung_meets_is_refused(self, home: Home, rows: str, more: list[str], code: str) -> None:
        assert call(home, "run", "digits", rows, *more)["error"]["code"] == code  # type: ignore[index]

    def test_what_is_no_array_is_refused(self, home: Home, rows: str, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong.npy"
        for content in (b"", b"not an array"):
            wrong.write_bytes(content)
            assert call(home, "run", "digits", str(wrong))["error"]["code"] == "request.invalid"  # type: ignore[index]
        np.save(wrong, np.zeros((2, 63), np.float32))
        assert call(home, "run", "digits", str(wrong))["error"]["code"] == "request.invalid"  # type: ignore[index]


def test_where_it_is_asked_no_rung_answers_that_owes_to_rows_which_nothing_covers(
    own_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "rows.npy", own_home.calibration.held.rows[:3])
    ask = ("run", "digits", str(tmp_path / "rows.npy"))
    rungs: dict[RungName, Told] = {"fp32": Told(), "int4": Told(p95_ms=0.5)}
    own_home.attached(tmp_path / "open", rungs, public=False)
    assert call(own_home, *ask)["rung"] == "int4"
    monkeypatch.setenv("QEDGE_EDGE__COVERED_ONLY", "true")
    refused = call(own_home, *ask)["error"]
    assert refused["code"] == "privacy.refused"  # type: ignore[index]
    assert "int4: choosing among quantisations" in refused["message"]  # type: ignore[index]
    own_home.attached(tmp_path / "public", rungs)
    assert call(own_home, *ask)["rung"] == "int4"
