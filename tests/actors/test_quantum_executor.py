"""Batches of circuits on a real Ray with two quantum workers: the answers of one process, whoever is killed or hangs."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator

import httpx
import numpy as np
import pennylane as qml
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from pennylane.tape import QuantumScript
from ray.util.placement_group import PlacementGroup

from actors.cluster import connect
from actors.quantum_executor import MOST_S, ROUND_TRIPS, Batch, RayExecutor, piece_length, quantum_workers
from actors.reservation import give_back, reserve
from qedge.config import Settings, load
from qedge.errors import InvalidCircuit, TooManyQubits, UnknownBackend, WorkersLost
from qedge.quantum.backend import Backend
from qedge.quantum.execution import LocalExecutor
from qedge.quantum.noise import Noise
from tests.actors.dying_circuits import Deadly
from tests.endpoint import eventually

CIRCUITS = 1000


class TestPieces:
    """How a batch is cut."""

    @given(st.integers(1, 10**6), st.integers(1, 64), st.floats(0, 1), st.none() | st.floats(0, 1e4))
    def test_a_piece_is_at_least_one_circuit_and_never_more_work_than_may_be_lost(
        self, waiting: int, workers: int, round_trip_s: float, circuit_s: float | None
    ) -> None:
        length = piece_length(waiting, workers, round_trip_s, circuit_s)
        assert 1 <= length <= waiting
        assert length == 1 or circuit_s is None or circuit_s == 0 or length * circuit_s <= MOST_S * (1 + 1e-9)

    @given(st.integers(1, 10**5), st.integers(1, 8), st.floats(1e-5, 1e-2), st.floats(1e-6, 1e-2))
    def test_handing_out_costs_a_twentieth_of_a_piece_unless_that_would_be_too_long(
        self, waiting: int, workers: int, round_trip_s: float, circuit_s: float
    ) -> None:
        length = piece_length(waiting, workers, round_trip_s, circuit_s)
        assert length * circuit_s >= min(waiting * circuit_s, ROUND_TRIPS * round_trip_s, MOST_S - circuit_s) * (1 - 1e-9)

    @given(st.integers(1, 3000), st.integers(1, 8), st.floats(1e-5, 1e-2), st.floats(1e-6, 1))
    def test_the_pieces_of_a_batch_are_all_of_it_each_circuit_once(
        self, size: int, workers: int, round_trip_s: float, circuit_s: float
    ) -> None:
        batch = Batch([QuantumScript([], [])] * size, Backend(), 0)
        covered = []
        while (piece := batch.piece(workers, round_trip_s)) is not None:
            covered += range(piece.first, piece.stop)
            batch.put(piece, [1.0] * (piece.stop - piece.first), circuit_s * (piece.stop - piece.first))
        assert covered == list(range(size))
        assert not batch.left
        assert batch.answers == [1.0] * size


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a home whose Ray has two CPUs."""
    small = {"cpus": 2, "object_store_bytes": 100 * 2**20}
    return load(environ={}, home=tmp_path_factory.mktemp("quantum") / "home", address="local", cluster=small)


@pytest.fixture(scope="module")
def reserved(settings: Settings) -> Iterator[PlacementGroup]:
    """Two bundles of CPUs on a Ray of this test's own."""
    with connect(settings, start=True):
        yield reserve("quantum-test", lambda: None)
        give_back("quantum-test")


@pytest.fixture(scope="module")
def executor(reserved: PlacementGroup) -> Iterator[RayExecutor]:
    """Two workers, for one test after another."""
    executor = RayExecutor(reserved, deadline_s=60)
    try:
        yield executor
    finally:
        executor.close()


def circuits(number: int, *, qubits: int = 5) -> list[QuantumScript]:
    """Different ones, by seed."""
    made = []
    for seed in range(number):
        angles = np.random.default_rng(seed).uniform(0, 6, (2, qubits))
        operations: list[qml.operation.Operator] = []
        for layer in angles:
            operations += [qml.RY(angle, wire) for wire, angle in enumerate(layer)]
            operations += [qml.CNOT([wire, wire + 1]) for wire in range(qubits - 1)]
        made.append(QuantumScript(operations, [qml.expval(qml.Z(0) @ qml.X(1)), qml.probs(wires=[0, 2])]))
    return made


def same(one: object, other: object) -> bool:
    """Bit for bit."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other))


class KillingExecutor(RayExecutor):
    """Kills one of its workers, by a signal, when half of a batch is done and that worker has a piece under way."""

    killed: int | None = None
    how = signal.SIGKILL

    def _await_one(self, batch: Batch) -> None:
        if self.killed is None and batch.left <= len(batch.circuits) // 2:
            slot = next(slot for slot, lane in enumerate(self.lanes) if lane.sent)
            self.killed = self.known[slot]
            os.kill(self.killed, self.how)
        super()._await_one(batch)

    def note_pids(self) -> None:
        """Ask for the processes while nothing is under way."""
        self.known = self.pids()


@pytest.mark.slow
@pytest.mark.parametrize("backend", [Backend(shots=100, seed=3), Backend(name="default.mixed", noise=Noise(depolarizing=0.01))], ids=str)
def test_a_thousand_circuits_over_two_workers_one_killed_midway_answer_as_one_process_does(
    reserved: PlacementGroup, backend: Backend
) -> None:
    asked = circuits(CIRCUITS if backend.noise is None else 100, qubits=4)
    expected = LocalExecutor().run(asked, backend, stream=5)
    killing = KillingExecutor(reserved, deadline_s=60)
    try:
        killing.note_pids()
        answers = killing.run(asked, backend, stream=5)
        assert killing.killed is not None
        assert same(answers, expected)
        assert killing.killed not in killing.pids()
        assert len(set(killing.pids())) == 2, "the one that was killed was replaced"
        assert same(killing.run(asked[:50], backend, stream=5), expected[:50])
    finally:
        killing.close()


@pytest.mark.slow
def test_a_worker_that_hangs_costs_a_deadline_and_no_answer(reserved: PlacementGroup) -> None:
    asked = circuits(300)
    hanging = KillingExecutor(reserved, deadline_s=5)
    hanging.how = signal.SIGSTOP
    try:
        hanging.note_pids()
        assert same(hanging.run(asked, Backend()), LocalExecutor().run(asked, Backend()))
        assert hanging.killed not in hanging.pids()
    finally:
        hanging.close()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_any_number_of_workers_gives_the_same_answers(reserved: PlacementGroup, workers: int) -> None:
    backend, asked = Backend(name="default.qubit", shots=20), circuits(40)
    few = RayExecutor(reserved, workers=workers)
    try:
        assert len(few.lanes) == min(workers, 2)
        assert same(few.run(asked, backend, stream=1), LocalExecutor().run(asked, backend, stream=1))
    finally:
        few.close()


@pytest.mark.slow
def test_a_worker_that_died_between_two_batches_is_replaced(executor: RayExecutor) -> None:
    asked = circuits(40)
    expected = executor.run(asked, Backend())
    victim = executor.pids()[0]
    os.kill(victim, signal.SIGKILL)
    assert same(executor.run(asked, Backend()), expected)
    assert victim not in executor.pids()


@pytest.mark.slow
def test_what_a_worker_refuses_is_raised_here_and_the_next_batch_runs(executor: RayExecutor) -> None:
    impossible = QuantumScript([qml.DepolarizingChannel(0.1, 0)], [qml.expval(qml.Z(0))])
    with pytest.raises(InvalidCircuit, match="cannot run this circuit"):
        executor.run([*circuits(20), impossible, *circuits(20)], Backend())
    assert same(executor.run(circuits(5), Backend()), LocalExecutor().run(circuits(5), Backend()))


@pytest.mark.slow
def test_what_can_be_refused_beforehand_never_reaches_a_worker(executor: RayExecutor) -> None:
    wide = QuantumScript([qml.Hadamard(wire) for wire in range(50)], [qml.expval(qml.Z(0))])
    with pytest.raises(TooManyQubits):
        executor.run([*circuits(3), wide], Backend())
    with pytest.raises(UnknownBackend):
        executor.run(circuits(1), Backend(name="nobody.knows"))
    assert not any(lane.sent for lane in executor.lanes)
    assert executor.run([], Backend()) == []


@pytest.mark.slow
def test_a_circuit_that_kills_every_worker_fails_the_batch_and_says_where(executor: RayExecutor) -> None:
    deadly = QuantumScript([Deadly(wires=0)], [qml.expval(qml.Z(0))])
    assert LocalExecutor().run([deadly], Backend()) == [1.0]
    with pytest.raises(WorkersLost, match="circuits 0 to 0 of the batch: in 3 attempts their worker died") as lost:
        executor.run([deadly], Backend())
    assert lost.value.facts["attempts"] == 3
    assert same(executor.run(circuits(5), Backend()), LocalExecutor().run(circuits(5), Backend()))


@pytest.mark.slow
def test_prometheus_hears_what_the_workers_ran(executor: RayExecutor) -> None:
    noisy = Backend(name="default.mixed", noise=Noise(depolarizing=0.01), shots=10)
    executor.looked_at = -math.inf
    executor.run(circuits(6, qubits=3), noisy)
    (node,) = ray.nodes()
    at = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def value(name: str) -> float | None:
        text = httpx.get(at, trust_env=False).text
        lines = [line for line in text.splitlines() if line.startswith(f"ray_{name}{{") and 'backend="default.mixed"' in line]
        return sum(float(line.split()[-1]) for line in lines) if lines else None

    assert eventually(lambda: value("qedge_state_fidelity") is not None)
    assert eventually(lambda: (value("qedge_circuits_total") or 0) >= 6)
    assert (value("qedge_circuit_shots_total") or 0) >= 60
    assert value("qedge_circuit_qubits") == 3
    assert value("qedge_circuit_cx") == 4
    assert value("qedge_circuit_gates") == 10
    assert 0.5 < (value("qedge_state_fidelity") or 0) < 0.95


@pytest.mark.slow
def test_workers_for_a_job_are_had_and_given_back(reserved: PlacementGroup, settings: Settings) -> None:
    before = ray.available_resources().get("CPU")
    with quantum_workers(settings, workers=1) as some:
        assert len(some.lanes) == 1
        assert same(some.run(circuits(3), Backend()), LocalExecutor().run(circuits(3), Backend()))
    assert eventually(lambda: ray.available_resources().get("CPU") == before)
