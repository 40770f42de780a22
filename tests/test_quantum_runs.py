"""Quantum jobs as runs: what is put on record, what the registry shows, and rows that have a budget."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from click.testing import CliRunner

import qedge
from qedge.cli import main
from qedge.config import Settings
from qedge.data import labelled
from qedge.data.federation import fingerprints, load
from qedge.errors import InvalidJob, Refused, ScopeConflict, TooManyQubits, UnknownBackend
from qedge.job import TrainingJob
from qedge.job.part import Part
from qedge.quantum import QAOA, QNN, VQE, Result
from qedge.quantum.progress import Step
from qedge.records import Records
from qedge.registry.registry import Registry
from qedge.registry.tracking import connection
from qedge.runs.training import train

FAST = {"splits": 2, "epochs": 1, "qubits": 2, "layers": 1, "learning_rates": (0.1,)}
ALWAYS = {"value", "error", "baseline", "verdict", "qubits", "gates", "cx", "depth", "shots", "seconds"}


def ask(home: Path, *arguments: str) -> tuple[int, Any]:
    result = CliRunner().invoke(main, [*arguments, "--home", str(home), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    lines = result.stdout.splitlines()
    return result.exit_code, json.loads(lines[-1]) if lines else None


def folders(settings: Settings) -> list[Path]:
    return sorted((settings.home / "runs").glob("*")) if (settings.home / "runs").exists() else []


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """80 rows of 8 clients, of two kinds."""
    draw = np.random.default_rng(3)
    kinds = np.arange(80) % 2
    columns = {"phone": [f"phone-{k % 8}" for k in range(80)], "x": draw.normal(size=80) + kinds, "y": draw.normal(size=80)}
    pyarrow.csv.write_csv(pa.table({**columns, "kind": [("rest", "walk")[kind] for kind in kinds]}), tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


def test_a_job_from_python_is_a_run_that_the_registry_shows_whole(settings: Settings) -> None:
    steps: list[Step] = []
    done = qedge.solve(VQE(), settings=settings, on_step=steps.append)
    assert done.result.value == pytest.approx(-1.1372838, abs=1e-6)
    assert done.published
    assert Result.load(done.folder / "attached" / "answer.json").plain() == done.result.plain()
    (row,) = Registry(settings).runs()
    assert (row.run_id, row.status) == (done.run_id, "FINISHED")
    assert (row.metrics["value"], row.metrics["cx"]) == (done.result.value, done.result.resources.cx)
    assert row.tags["qedge.verdict"] == str(done.result.verdict)
    with connection(settings) as client:
        history = client.get_metric_history(row.mlflow_run_id, "value")
        artifacts = {one.path for one in client.list_artifacts(row.mlflow_run_id)}
    assert [one.value for one in history][: len(steps)] == [step.value for step in steps]
    assert "answer.json" in artifacts


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (VQE(backend={"name": "ligthning.qubit"}), UnknownBackend),
        (
            QAOA(random_regular={"degree": 3, "nodes": 60}, backend={"name": "default.qubit", "shots": 10}, optimiser={"kind": "spsa"}),
            TooManyQubits,
        ),
        (QNN(data="wine", **FAST, backend={"name": "ligthning.qubit"}), UnknownBackend),
    ],
)
def test_a_job_that_is_refused_leaves_no_run(settings: Settings, job: Any, error: type[Refused]) -> None:
    with pytest.raises(error):
        qedge.solve(job, settings=settings)
    assert not folders(settings)
    assert [entry.event for entry in Records.open(settings.home).log.entries()][-1] == "quantum.refused"


def test_what_is_no_quantum_job_is_refused(settings: Settings) -> None:
    with pytest.raises(InvalidJob, match="accepted: VQE, QAOA"):
        qedge.solve(Part(), settings=settings)  # type: ignore[arg-type]


def test_rows_that_have_a_budget_are_refused_whatever_the_file_is_called(settings: Settings, table: Path, tmp_path: Path) -> None:
    """A quantum study trains without noise: on rows with a budget it would void it."""
    job = TrainingJob.parse(
        {
            "name": "steps",
            "data": {
                "source": str(table),
                "client": "phone",
                "label": "kind",
                "test": 0.3,
                "evaluation": "public",
                "labels": ["rest", "walk"],
            },
            "model": {"kind": "linear"},
            "algorithm": {"kernel": "stacked"},
            "cohort": {"sampling": "poisson", "rate": 0.5},
            "privacy": {"unit": "client", "epsilon": 6, "delta": 0.01, "clipping": {"bound": 0.5}},
            "rounds": 1,
        }
    )
    train(job, backend="serial", settings=settings)
    before = folders(settings)
    shuffled = pyarrow.csv.read_csv(table)
    shuffled = shuffled.take(np.random.default_rng(0).permutation(shuffled.num_rows))
    pyarrow.csv.write_csv(shuffled, tmp_path / "other.csv")
    for name in ("rows.csv", "other.csv"):
        with pytest.raises(ScopeConflict, match="have a privacy budget"):
            qedge.solve(QNN(data=str(tmp_path / name), label="kind", drop=("phone",), **FAST), settings=settings)
    code, told = ask(settings.home, "quantum", "qnn", str(table), "--label", "kind", "--drop", "phone", "--splits", "2", "--epochs", "1")
    assert (code, told["error"]["code"]) == (2, "privacy.scope-conflict")
    assert folders(settings) == before


def test_that_rows_were_used_without_privacy_is_on_record_before_a_step_is_told(settings: Settings, table: Path) -> None:
    job = QNN(data=str(table), label="kind", drop=("phone",), **FAST)
    records = Records.open(settings.home)
    private = TrainingJob.parse(
        {
            "name": "steps",
            "data": {"source": str(table), "client": "phone", "label": "kind", "labels": ["rest", "walk"]},
            "model": {"kind": "linear"},
            "algorithm": {},
            "cohort": {"sampling": "poisson", "rate": 0.5},
            "privacy": {"unit": "client", "epsilon": 6, "delta": 0.01, "clipping": {"bound": 0.5}},
            "rounds": 1,
        }
    )
    prints = fingerprints(load(private.data, 0), lambda message: records.keys.mac("fingerprint", message))
    seen: list[Sequence[str]] = []
    done = qedge.solve(job, settings=settings, on_step=lambda _: seen.append(records.ledger.runs_without_privacy(prints)))
    assert seen[0] == seen[-1] == records.ledger.runs_without_privacy(prints) == (done.run_id,)


def test_a_table_is_known_again_without_its_clients(table: Path) -> None:
    """What a study of all rows and a federation of the same file have in common: at least the whole content, and all rows of features."""
    whole = set(labelled.read(str(table), "kind", ("phone",)).identity)
    job = {"source": str(table), "client": "phone", "label": "kind"}
    assert len(whole & set(load(TrainingJob.model_fields["data"].annotation(**job), 0).identity)) >= 2  # type: ignore[misc]
    built_in = {"source": "wine", "partition": {"clients": 10}}
    assert set(labelled.read("wine", "").identity) & set(load(TrainingJob.model_fields["data"].annotation(**built_in), 0).identity)  # type: ignore[misc]


def test_each_command_prints_what_the_contract_says(tmp_path: Path, table: Path) -> None:
    """One home for all; the graph lies beside no job, the table in the job's place."""
    home = tmp_path / "home"
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]]))
    jobs = {
        "vqe": ["--molecule", "H2", "--bond-length", "0.74"],
        "qaoa": [str(graph), "--layers", "2"],
        "qsvm": [str(table), "--label", "kind", "--drop", "phone", "--splits", "2", "--save", str(tmp_path / "machine")],
        "qnn": [str(table), "--label", "kind", "--drop", "phone", "--splits", "2", "--epochs", "1", "--qubits", "2"],
    }
    for kind, options in jobs.items():
        code, told = ask(home, "quantum", kind, *options, "--output", str(tmp_path / f"{kind}.json"))
        assert code == 0
        assert told.keys() >= ALWAYS
        assert told["verdict"] in ("quantum better", "classical better", "no difference")
        saved = Result.load(tmp_path / f"{kind}.json")
        assert (saved.value, saved.kind) == (told["value"], kind)
        if kind == "vqe":
            assert abs(told["value"] - told["exact"]) < 1e-8
    code, listed = ask(home, "runs")
    assert (code, len(listed["runs"])) == (0, 4)
    code, told = ask(home, "receipt", "verify", str(tmp_path / "machine"))
    assert (code, told["files"]) == (0, ["machine.json", "machine.npz"])


PROGRAM = """OPENQASM 2.0;
include "qelib1.inc";
qreg q[3];
creg c[3];
x q[0];
h q[1]; h q[1];
swap q[0],q[2];
cx q[2],q[1];
measure q[1] -> c[0];
measure q[2] -> c[2];
measure q[0] -> c[1];
"""


def test_a_program_is_compiled_run_and_written_and_means_the_same(tmp_path: Path) -> None:
    """Bits 0 and 2 are 1, by hand, and bits are measured in another order than qubits have."""
    (tmp_path / "program.qasm").write_text(PROGRAM)
    code, plain = ask(tmp_path, "quantum", "circuit", str(tmp_path / "program.qasm"), "--backend", "default.qubit")
    assert (code, plain["probabilities"]) == (0, {"101": pytest.approx(1)})
    written = tmp_path / "compiled.qasm"
    asked = [
        str(tmp_path / "program.qasm"),
        "--optimise",
        "--output",
        str(written),
        "--noise",
        "readout=0.1",
        "--shots",
        "4000",
        "--seed",
        "3",
    ]
    code, compiled = ask(tmp_path, "quantum", "circuit", *asked)
    assert (code, compiled["before"]["cx"]) == (0, 4)
    assert compiled["cx"] < 4
    assert compiled["probabilities"]["101"] == pytest.approx(0.9**3, abs=5 * compiled["errors"]["101"])
    assert compiled["fidelity"] == pytest.approx(0.9**3, abs=0.05)
    code, again = ask(tmp_path, "quantum", "circuit", str(written), "--backend", "default.qubit")
    assert (code, again["probabilities"]) == (0, {"101": pytest.approx(1)})


def test_a_malformed_program_or_one_over_its_budget_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "program.qasm").write_text(PROGRAM.replace("swap q[0]", "swop q[0]"))
    code, told = ask(tmp_path, "quantum", "circuit", str(tmp_path / "program.qasm"))
    assert (code, told["error"]["code"]) == (2, "quantum.circuit")
    assert told["error"]["message"].startswith("line 7, column 1: unknown gate 'swop'")
    (tmp_path / "program.qasm").write_text(PROGRAM)
    asked = [str(tmp_path / "program.qasm"), "--optimise", "--gate-budget", "1", "--output", str(tmp_path / "none.qasm")]
    code, told = ask(tmp_path, "quantum", "circuit", *asked)
    assert (code, told["error"]["code"]) == (2, "quantum.gate-budget")
    assert not (tmp_path / "none.qasm").exists()
    code, told = ask(tmp_path, "quantum", "circuit", *asked[:4], "--over", "warn")
    assert code == 0
    assert "more than the budget of 1" in told["warnings"][0]


def test_options_take_the_place_of_what_a_job_says(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("problem: {kind: ising, sites: 3}\nansatz: {kind: hardware-efficient, layers: 1}\nseed: 5\n")
    code, told = ask(tmp_path / "home", "quantum", "vqe", str(job), "--ising", "2")
    assert (code, told["qubits"]) == (0, 2)
    asked = json.loads((tmp_path / "home" / "runs" / told["run"] / "quantum.json").read_bytes())
    assert (asked["seed"], asked["ansatz"]["layers"], asked["problem"]["sites"]) == (5, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["vqe", "--molecule", "H3"], "quantum.hamiltonian", "known: BeH2, H2, LiH"),
        (["vqe", "--molecule", "H2", "--ising", "3"], "job.invalid", "either a molecule or --ising"),
        (["vqe", "--backend", "lightning.cubit"], "quantum.unknown-backend", "lightning.qubit"),
        (["vqe", "--shots", "0"], "job.invalid", "greater than or equal to 1"),
        (["vqe", "--noise", "depolarizing=2"], "job.invalid", "less than or equal to 1"),
        (["vqe", "--noise", "depolarising"], "command.invalid", "not of the form depolarizing=0.01"),
        (["vqe", "--backend", "qiskit.remote"], "quantum.backend-unavailable", "qedge[qiskit]"),
        (["vqe", "missing.yaml"], "job.invalid", "cannot be read"),
        (["vqe", "--output", "answer.txt"], "request.invalid", ".json"),
        (["qaoa"], "job.invalid", "exactly one of graph, random_regular and qubo"),
        (["qaoa", "missing.json"], "data.not-found", "missing.json"),
        (["qsvm", "--data", "wine", "--kernel", "linear"], "job.invalid", "'fidelity' or 'projected'"),
        (["qsvm", "--data", "wine", "--save", "missing/machine"], "config.invalid", "a new folder"),
        (["circuit", "missing.qasm"], "data.not-found", "missing.qasm"),
        (["qnn", "--data", "wien"], "job.unknown-key", "did you mean 'wine'"),
        (["qnn", "--data", "wine", "--qubits", "13"], "job.invalid", "less than or equal to 12"),
    ],
)
def test_bad_input_exits_2_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    exit_code, told = ask(tmp_path / "home", "quantum", *arguments)
    assert (exit_code, told["error"]["code"]) == (2, code)
    assert said in told["error"]["message"]
    assert not list((tmp_path / "home" / "runs").glob("*"))


def test_a_command_that_is_killed_leaves_no_run_and_the_next_is_whole(settings: Settings) -> None:
    """Killed once it has told a step of training, long before it could be done."""
    long = [sys.executable, "-m", "qedge", "quantum", "qaoa", "--random-regular", "3", "16", "--layers", "30", "--home", str(settings.home)]
    with subprocess.Popen(long, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("1 layer")
        running.kill()
    assert running.returncode == -9
    assert not [path for path in folders(settings) if not path.name.startswith(".")]
    code, told = ask(settings.home, "quantum", "qaoa", "--random-regular", "2", "4", "--layers", "1")
    assert code == 0
    assert [path.name for path in folders(settings) if not path.name.startswith(".")] == [told["run"]]


def test_the_answer_does_not_depend_on_workers_on_ray(settings: Settings) -> None:
    """With shots, so that each circuit's own seed counts."""
    job = VQE(
        problem={"kind": "ising", "sites": 3},
        backend={"name": "default.qubit", "shots": 50},
        optimiser={"kind": "spsa", "steps": 4},
        seed=2,
    )
    here, there = (qedge.solve(job, workers=workers, settings=settings).result for workers in (0, 2))
    assert (here.value, here.error, here.details["history"]) == (there.value, there.error, there.details["history"])
