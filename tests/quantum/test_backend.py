"""Backends by name: what is there, what each can do, and everything that is refused before memory is taken."""

from __future__ import annotations

import pickle
from pathlib import Path

import pennylane as qml
import pytest
from pennylane.tape import QuantumScript

from qedge.errors import BackendUnavailable, InvalidJob, QuantumError, TooManyQubits, UnknownBackend, UnknownKey
from qedge.quantum import state_size
from qedge.quantum.backend import TOKEN, Backend, available, device
from qedge.quantum.execution import LocalExecutor
from qedge.quantum.noise import Noise
from qedge.quantum.state_size import needed_bytes, refuse_too_many

PAIR = QuantumScript([qml.Hadamard(0), qml.CNOT([0, 1])], [qml.expval(qml.Z(0) @ qml.Z(1)), qml.probs(wires=[0, 1])])


def wide(qubits: int) -> QuantumScript:
    """A circuit on so many wires."""
    return QuantumScript([qml.Hadamard(wire) for wire in range(qubits)], [qml.expval(qml.Z(0))])


def test_what_is_available_says_what_each_backend_can_do() -> None:
    found = {one.name: one for one in available()}
    assert {"statevector", "lightning.qubit", "default.qubit", "default.mixed"} <= {name for name, one in found.items() if one.installed}
    assert [name for name, one in found.items() if one.noise] == ["default.mixed"]
    assert found["qiskit.remote"].hardware
    assert all(one.missing for one in found.values() if not one.installed)
    assert not any(found[name].missing for name in ("statevector", "lightning.qubit", "default.qubit", "default.mixed"))


@pytest.mark.parametrize("name", [one.name for one in available() if one.installed and not one.missing and one.name != "null.qubit"])
def test_every_installed_backend_runs_a_bell_pair(name: str) -> None:
    (answer,) = LocalExecutor().run([PAIR], Backend(name=name))
    assert isinstance(answer, tuple)
    assert answer[0] == pytest.approx(1)
    assert answer[1] == pytest.approx([0.5, 0, 0, 0.5])


def test_an_unknown_backend_lists_those_that_are_installed_and_offers_the_nearest() -> None:
    with pytest.raises(UnknownBackend, match=r"'lightening.qubit'.*did you mean 'lightning.qubit'.*installed: .*default.mixed") as refused:
        LocalExecutor().run([PAIR], Backend(name="lightening.qubit"))
    assert "default.qubit" in str(refused.value.facts["accepted"])
    with pytest.raises(UnknownBackend, match="installed"):
        device(Backend(name="zzz"), 2, 0)


def test_a_backend_that_lacks_something_names_it() -> None:
    for one in available():
        if one.missing:
            with pytest.raises(BackendUnavailable, match="needs"):
                device(Backend(name=one.name), 2, 0)


def test_a_token_has_no_place_in_a_job() -> None:
    with pytest.raises(BackendUnavailable, match=f"secret.*{TOKEN}"):
        Backend(name="qiskit.remote", options={"token": "abc"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"shots": 0}, "shots: input should be greater than or equal to 1; given: 0"),
        ({"shots": -5}, "shots"),
        ({"seed": -1}, "seed"),
        ({"name": "default.mixed", "noise": {"depolarizing": 1.5}}, "depolarizing: input should be less than or equal to 1; given: 1.5"),
        ({"name": "default.mixed", "noise": {"readout": [0.1, -0.1]}}, r"readout.1"),
        ({"name": "default.mixed", "noise": {"phase_damping": float("nan")}}, "phase_damping"),
        ({"shots": True}, "truth values"),
    ],
)
def test_what_is_out_of_range_is_refused_and_shown(values: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidJob, match=said):
        Backend.model_validate(values)


def test_an_unknown_key_offers_the_nearest() -> None:
    with pytest.raises(UnknownKey, match="did you mean 'shots'"):
        Backend.model_validate({"shot": 3})
    with pytest.raises(UnknownKey, match="did you mean 'depolarizing'"):
        Backend.model_validate({"name": "default.mixed", "noise": {"depolarising": 0.1}})


def test_noise_is_refused_where_there_are_no_noise_models() -> None:
    with pytest.raises(BackendUnavailable, match=r"'lightning.qubit' knows no noise.*default.mixed"):
        Backend(noise=Noise(depolarizing=0.1))


def test_options_that_the_device_does_not_take_are_refused() -> None:
    with pytest.raises(BackendUnavailable, match="batch_observables"):
        device(Backend(options={"batch_observables": True}), 2, 0)
    assert len(device(Backend(options={"batch_obs": True}), 2, 0).wires) == 2


@pytest.mark.parametrize(("name", "qubits"), [("lightning.qubit", 45), ("default.qubit", 44), ("default.mixed", 24)])
def test_too_many_qubits_are_refused_before_anything_is_allocated_with_estimate_and_limit(name: str, qubits: int) -> None:
    with pytest.raises(TooManyQubits, match=r"iB, the limit is .*at most \d+ qubits fit") as refused:
        LocalExecutor().run([PAIR, wide(qubits)], Backend(name=name))
    facts = refused.value.facts
    assert int(str(facts["needed_bytes"])) > int(str(facts["limit_bytes"]))
    assert needed_bytes(name, int(str(facts["accepted"]))) or int(str(facts["limit_bytes"])) >= 0
    with pytest.raises(TooManyQubits):
        device(Backend(name=name), qubits, 0)


def test_the_limit_lies_between_the_largest_that_fits_and_the_next() -> None:
    limit = needed_bytes("lightning.qubit", 20)
    refuse_too_many("lightning.qubit", 20, limit=limit)
    with pytest.raises(TooManyQubits, match="at most 20 qubits fit"):
        refuse_too_many("lightning.qubit", 21, limit=limit)
    with pytest.raises(TooManyQubits):
        refuse_too_many("lightning.qubit", 20, batch=2, limit=limit)
    with pytest.raises(TooManyQubits):
        refuse_too_many("lightning.qubit", 20, gradient=True, limit=limit)
    assert needed_bytes("default.mixed", 6) == needed_bytes("default.mixed", 5, batch=4)


def test_a_backend_that_holds_no_state_has_no_limit_of_memory() -> None:
    refuse_too_many("default.clifford", 1000)
    assert needed_bytes("default.clifford", 1000) is None


def test_statevector_takes_as_many_qubits_as_the_simulator_of_that_name() -> None:
    answer = LocalExecutor().run([wide(12)], Backend(name="statevector"))
    assert answer == [pytest.approx(0)]
    with pytest.raises(TooManyQubits, match="at most 12 qubits, given 13"):
        LocalExecutor().run([wide(13)], Backend(name="statevector"))


def test_the_memory_of_a_container_counts_where_it_is_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(state_size, "_CGROUP", tmp_path)
    free = state_size.limit_bytes()
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("48576\n")
    assert state_size.limit_bytes() == 800_000 < free
    (tmp_path / "memory.max").write_text("max\n")
    assert state_size.limit_bytes() > 800_000


def test_a_backend_travels_and_compares_by_value() -> None:
    backend = Backend(name="default.mixed", shots=10, noise=Noise(readout=(0.1, 0.2)), options={"r_dtype": None})
    assert pickle.loads(pickle.dumps(backend)) == backend
    assert Backend.model_validate_json(backend.model_dump_json()) == backend


def test_every_refusal_is_a_refused_quantum_job() -> None:
    assert all(issubclass(kind, QuantumError) for kind in (UnknownBackend, BackendUnavailable, TooManyQubits))
