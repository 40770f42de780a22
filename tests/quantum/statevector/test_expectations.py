"""Values and gradients of the statevector against PennyLane's `default.qubit`, and circuits that it does not take."""

from __future__ import annotations

import pickle

import pennylane as qml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import InvalidValue, TooManyQubits
from qedge.quantum.statevector.evolution import Circuit, Embedding
from qedge.quantum.statevector.expectations import expectations, gradients_of_rows
from qedge.quantum.statevector.plan import MOST_QUBITS, Plan

TOLERANCE = 1e-10
ANY_CIRCUIT = {
    "qubits": st.integers(1, 5),
    "layers": st.integers(1, 3),
    "rows": st.integers(1, 4),
    "embedding": st.sampled_from(["ry", "rx"]),
    "reupload": st.booleans(),
    "seed": st.integers(0, 2**20),
}


def _peer(circuit: Circuit, angles: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """<Z> of every wire by `default.qubit`, [rows, qubits]."""
    layers, qubits = weights.shape[:2]

    @qml.qnode(qml.device("default.qubit"), diff_method="backprop", interface="torch")
    def run():
        for layer in range(layers):
            if layer == 0 or circuit.reupload:
                qml.AngleEmbedding(angles, range(qubits), rotation=circuit.embedding[1].upper())
            qml.StronglyEntanglingLayers(weights[layer : layer + 1], range(qubits), ranges=[1] if qubits > 1 else None)
        return [qml.expval(qml.Z(wire)) for wire in range(qubits)]

    return torch.stack(run(), -1)


def _drawn(qubits: int, layers: int, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, qubits), (layers, qubits, 3), (rows, qubits))
    angles, weights, slope = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return angles.requires_grad_(), weights.requires_grad_(), slope


@settings(max_examples=25, deadline=None)
@given(**ANY_CIRCUIT)
def test_values_and_gradients_equal_default_qubit(
    qubits: int, layers: int, rows: int, embedding: Embedding, reupload: bool, seed: int
) -> None:
    circuit = Circuit(Plan(qubits), embedding, reupload)
    angles, weights, slope = _drawn(qubits, layers, rows, seed)
    expected, found = _peer(circuit, angles, weights), expectations(circuit, angles, weights)
    assert (found - expected).abs().max() <= TOLERANCE
    theirs = torch.autograd.grad((expected * slope).sum(), (angles, weights))
    mine = torch.autograd.grad((found * slope).sum(), (angles, weights))
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).abs().max() <= TOLERANCE


@settings(max_examples=25, deadline=None)
@given(**ANY_CIRCUIT)
def test_the_gradient_of_each_row_equals_that_of_the_row_alone(
    qubits: int, layers: int, rows: int, embedding: Embedding, reupload: bool, seed: int
) -> None:
    circuit = Circuit(Plan(qubits), embedding, reupload)
    angles, weights, slope = _drawn(qubits, layers, rows, seed)
    each = gradients_of_rows(circuit, angles.detach(), weights.detach(), slope)
    for row in range(rows):
        one = slice(row, row + 1)
        (alone,) = torch.autograd.grad((expectations(circuit, angles[one], weights) * slope[one]).sum(), weights)
        assert (each[row] - alone).abs().max() <= TOLERANCE


def test_twelve_qubits_equal_default_qubit() -> None:
    circuit = Circuit(Plan(12))
    angles, weights, slope = _drawn(12, 2, 2, 0)
    expected, found = _peer(circuit, angles, weights), expectations(circuit, angles, weights)
    theirs = torch.autograd.grad((expected * slope).sum(), (angles, weights))
    mine = torch.autograd.grad((found * slope).sum(), (angles, weights))
    assert (found - expected).abs().max() <= TOLERANCE
    assert max((one - other).abs().max() for one, other in zip(mine, theirs, strict=True)) <= TOLERANCE


def test_wire_0_comes_first() -> None:
    angles = torch.tensor([[torch.pi, 0.0, 0.0]], dtype=torch.float64)
    found = expectations(Circuit(Plan(3)), angles, torch.zeros(1, 3, 3, dtype=torch.float64))
    # |100>, CNOT 0→1: |110>, 1→2: |111>, 2→0: |011>
    assert torch.allclose(found, torch.tensor([[1.0, -1.0, -1.0]], dtype=torch.float64))


def test_without_gradients_the_values_are_the_same() -> None:
    circuit = Circuit(Plan(4), reupload=True)
    angles, weights, _ = _drawn(4, 2, 3, 1)
    with torch.no_grad():
        plain = expectations(circuit, angles, weights)
    assert torch.equal(plain, expectations(circuit, angles, weights).detach())


def test_a_second_derivative_is_refused_and_never_wrong() -> None:
    angles, weights, slope = _drawn(2, 1, 1, 0)
    found = expectations(Circuit(Plan(2)), angles, weights)
    (first,) = torch.autograd.grad((found * slope.requires_grad_()).sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_no_qubit_too_many_and_other_numbers_are_refused() -> None:
    with pytest.raises(InvalidValue, match="at least one qubit; given: 0"):
        Plan(0)
    with pytest.raises(TooManyQubits, match=f"accepted here: at most {MOST_QUBITS}"):
        Plan(13)
    with pytest.raises(InvalidValue, match=r"accepted: torch\.float32, torch\.float64"):
        expectations(Circuit(Plan(2)), torch.zeros(1, 2).half(), torch.zeros(1, 2, 3).half())


def test_a_plan_goes_to_another_process_as_its_number_of_qubits() -> None:
    plan = Plan(12)
    assert len(pickle.dumps(plan)) < 200
    assert torch.equal(pickle.loads(pickle.dumps(plan)).ring, plan.ring)
