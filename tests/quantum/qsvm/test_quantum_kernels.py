"""Feature maps and kernels against PennyLane's simulator, and against what they must be whatever the rows."""

from __future__ import annotations

import math

import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pennylane.tape import QuantumScript

from qedge.errors import InvalidCircuit, InvalidValue, TooManyQubits
from qedge.quantum.backend import Backend
from qedge.quantum.execution import LocalExecutor
from qedge.quantum.qsvm.alignment import alignment, concentration
from qedge.quantum.qsvm.feature_maps import circuit, states
from qedge.quantum.qsvm.job import FeatureMap, Kernel
from qedge.quantum.qsvm.kernels import encode, measured_gram

MAPS = st.builds(
    FeatureMap,
    kind=st.sampled_from(["zz", "iqp", "angle"]),
    repetitions=st.integers(1, 3),
    entanglement=st.sampled_from(["full", "linear"]),
    bandwidth=st.floats(0.01, 3),
)


def rows_of(seed: int, rows: int, qubits: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, qubits))


@given(MAPS, st.integers(0, 1000), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_states_are_those_of_the_circuit_up_to_a_phase(map_: FeatureMap, seed: int, qubits: int) -> None:
    rows = rows_of(seed, 3, qubits)
    found = states(map_, rows)
    for row, state in zip(rows, found, strict=True):
        (expected,) = qml.execute([QuantumScript(circuit(map_, row).operations, [qml.state()])], qml.device("default.qubit", wires=qubits))
        assert abs(np.vdot(expected, state)) == pytest.approx(1, abs=1e-12)


def test_the_zz_map_is_that_of_its_paper() -> None:
    """Havlíček et al. 2019, equation 6, as matrices: exp(i Σ φ_S(x) Π Z) H, twice, with φ_i = x_i and φ_12 = (π - x_1)(π - x_2)."""
    x = np.array([0.4, 1.3])
    z, one = np.diag([1.0, -1.0]), np.eye(2)
    phase = x[0] * np.kron(z, one) + x[1] * np.kron(one, z) + (math.pi - x[0]) * (math.pi - x[1]) * np.kron(z, z)
    layer = np.diag(np.exp(-1j * np.diag(phase))) @ np.kron(*[np.array([[1, 1], [1, -1]]) / math.sqrt(2)] * 2)
    expected = (layer @ layer)[:, 0]
    assert abs(np.vdot(expected, states(FeatureMap(), x[np.newaxis])[0])) == pytest.approx(1, abs=1e-12)


@given(MAPS, st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_fidelity_is_that_of_pennylane_within_1e_12(map_: FeatureMap, seed: int) -> None:
    rows = rows_of(seed, 4, 4)
    device = qml.device("default.qubit", wires=4)
    for one in range(4):
        for other in range(4):
            back = [qml.adjoint(gate) for gate in reversed(circuit(map_, rows[other]).operations)]
            (zeros,) = qml.execute([QuantumScript([*circuit(map_, rows[one]).operations, *back], [qml.probs(range(4))])], device)
            assert abs(encode(map_, Kernel(), rows).gram()[one, other] - zeros[0]) <= 1e-12


@given(MAPS, st.integers(0, 1000), st.floats(0.1, 3))
@settings(max_examples=15, deadline=None)
def test_the_projected_kernel_is_that_of_density_matrices(map_: FeatureMap, seed: int, gamma: float) -> None:
    rows = rows_of(seed, 3, 3)
    device = qml.device("default.qubit", wires=3)
    measured = [qml.density_matrix([wire]) for wire in range(3)]
    scripts = [QuantumScript(circuit(map_, row).operations, measured) for row in rows]
    densities = np.array(qml.execute(scripts, device)).reshape(3, 3, 2, 2)
    found = encode(map_, Kernel(kind="projected", gamma=gamma), rows).gram()
    for one in range(3):
        for other in range(3):
            apart = np.linalg.norm(densities[one] - densities[other], axis=(1, 2)) ** 2
            assert found[one, other] == pytest.approx(math.exp(-gamma * apart.sum()), abs=1e-12)


@given(MAPS, st.sampled_from(["fidelity", "projected"]), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_gram_matrix_is_a_kernel(map_: FeatureMap, kind: str, seed: int) -> None:
    rows = rows_of(seed, 12, 4)
    encoded = encode(map_, Kernel(kind=kind), rows)
    gram = encoded.gram()
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(np.diag(gram), 1)
    assert gram.min() >= 0
    assert gram.max() <= 1
    assert np.linalg.eigvalsh(gram).min() > -1e-10
    np.testing.assert_allclose(encoded[:5].gram(encoded), gram[:5], atol=1e-12)


@pytest.mark.parametrize("kind", ["fidelity", "projected"])
def test_a_backend_measures_the_kernel_within_its_error_bars(kind: str) -> None:
    """Of 15 entries none lies beyond 5.5 errors: chance 6e-7 with normal errors; the seed is fixed, so no chance is left."""
    rows, map_, kernel = rows_of(1, 6, 3), FeatureMap(bandwidth=0.3), Kernel(kind=kind)
    exact = encode(map_, kernel, rows).gram()
    found = measured_gram(map_, kernel, rows, Backend(name="default.qubit", shots=4000), LocalExecutor())
    off = np.triu_indices(6, 1)
    assert (np.abs(found.values - exact)[off] < 5.5 * found.errors[off]).all()
    assert 0 < found.errors[off].max() < 0.06
    assert found.circuits == (15 if kind == "fidelity" else 18)
    assert found.shots == 4000 * found.circuits


@pytest.mark.parametrize("kind", ["fidelity", "projected"])
def test_a_backend_without_shots_gives_the_exact_kernel(kind: str) -> None:
    rows, map_, kernel = rows_of(2, 4, 3), FeatureMap(kind="iqp"), Kernel(kind=kind)
    found = measured_gram(map_, kernel, rows, Backend(name="default.qubit"))
    np.testing.assert_allclose(found.values, encode(map_, kernel, rows).gram(), atol=1e-10)
    assert not found.errors.any()


def test_what_shots_add_to_a_distance_is_taken_off_the_projected_kernel() -> None:
    """The mean over pairs of 60 measurements of each of two rows is the exact kernel; left in, 40 shots would lower it by 0.04.

    The bound is 5 deviations of that mean, 0.003 each (a false alarm below 1e-6, were the seed not fixed), and 0.002 that are left: the
    curve of exp, and squares of what was measured in place of what is true.
    """
    map_, kernel, times = FeatureMap(bandwidth=0.5), Kernel(kind="projected", gamma=0.1), 60
    two = rows_of(4, 2, 6)
    exact = encode(map_, kernel, two).gram()[0, 1]
    found = measured_gram(map_, kernel, np.repeat(two, times, axis=0), Backend(name="default.qubit", shots=40, seed=5))
    across = found.values[:times, times:]
    deviation = math.hypot(*(across.mean(axis=axis).std(ddof=1) for axis in (0, 1))) / math.sqrt(times)
    assert deviation < 0.004
    assert abs(across.mean() - exact) < 0.002 + 5 * deviation


def test_too_many_circuits_or_qubits_are_refused_before_any_is_run() -> None:
    with pytest.raises(InvalidCircuit, match="20100 circuits; accepted: rows that need at most 20000"):
        measured_gram(FeatureMap(), Kernel(), np.zeros((201, 3)), Backend())
    with pytest.raises(TooManyQubits, match="at most 16"):
        states(FeatureMap(), np.zeros((2, 17)))
    with pytest.raises(TooManyQubits, match="fewer rows"):
        states(FeatureMap(), np.zeros((10_000_000, 16)))
    with pytest.raises(InvalidValue, match="finite"):
        encode(FeatureMap(), Kernel(), np.array([[0.0, np.nan]]))


def test_alignment_is_one_with_the_labels_and_none_with_nothing() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    ideal = (labels[:, np.newaxis] == labels).astype(float)
    assert alignment(ideal, labels) == pytest.approx(1)
    assert alignment(3 * ideal + 7, labels) == pytest.approx(1)  # centred: a constant counts for nothing
    assert alignment(np.ones((5, 5)), labels) == 0
    assert alignment(-ideal, labels) == pytest.approx(-1)


def test_a_kernel_concentrates_as_qubits_are_added_and_is_warned_about() -> None:
    """Thanasilp et al. 2024: entries of a deep map fall like 2^-qubits, with as small a spread."""
    found = [concentration(encode(FeatureMap(), Kernel(), rows_of(0, 60, qubits)).gram()) for qubits in (2, 6, 10)]
    assert found[0].mean > found[1].mean > found[2].mean
    assert not found[0].warning
    assert "concentrated" in found[2].warning
    assert found[2].shots is not None
    assert found[2].shots > 200
    narrow = concentration(encode(FeatureMap(bandwidth=0.01), Kernel(), rows_of(0, 60, 10)).gram())
    assert not narrow.warning
