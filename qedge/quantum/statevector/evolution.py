"""A layered circuit on many rows at once, and its gradient by going backwards through it.

The circuit: angles embedded by RY (or RX) on |0...0>, then layers of Rot on every wire and a CNOT ring; with re-uploading the angles are
embedded again at the start of each layer. The answer is <Z> of every wire. All gates of a layer's half are one matrix, and the ring is
one gather.

The gradient is that of the adjoint method (Jones, Gacon, "Efficient calculation of gradients in classical simulations of variational
quantum algorithms", arXiv 2009.02823): with φ the state after a layer's rotations and μ the gradient with respect to it, a rotation
exp(-i a P/2) contributes Im<μ|P'|φ>/2, P' being P carried through the rotations of its wire that come after. On one wire every P' is a
combination of X, Y and Z, so that three numbers a wire hold all. Groups of rows have weights of their own: clients, or single rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from qedge.quantum.statevector.gates import after_rx, block, half_turns, one_like, outer, product, rot, rx, ry, tensor_product
from qedge.quantum.statevector.plan import Plan

Embedding = Literal["ry", "rx"]


@dataclass(frozen=True)
class Circuit:
    """plan: of its qubits; reupload: embed the angles before every layer, not only the first."""

    plan: Plan
    embedding: Embedding = "ry"
    reupload: bool = False


@dataclass(frozen=True)
class Evolved:
    """What the gradient needs. matrices: of each layer but the first, (left, right) as real blocks [groups, 2 size, 2 size]; between: of
    the same layers, the state after the left matrix, [groups, 2 left, right * rows]; turned: of every layer the state after both,
    [groups, 2 * 2^qubits, rows]."""

    matrices: list[tuple[torch.Tensor, torch.Tensor]]
    between: list[torch.Tensor]
    turned: list[torch.Tensor]


def evolve(circuit: Circuit, angles: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, Evolved]:
    """<Z> of every wire, [groups, qubits, rows], and the states on the way.

    angles: [groups, qubits, rows]; weights: [groups, layers, qubits, 3], (phi, theta, omega).
    """
    if circuit.reupload:
        found, evolved = _evolve(circuit, *_apart(angles, weights))
        return _together(found, angles.shape), evolved
    return _evolve(circuit, angles, weights)


def gradient(
    circuit: Circuit, angles: torch.Tensor, weights: torch.Tensor, evolved: Evolved, slope: torch.Tensor, *, each: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """That of sum(slope * <Z>), with respect to angles, [groups, qubits, rows], and weights, [groups, layers, qubits, 3]; with `each` the
    latter for every row apart, [groups, layers, qubits, 3, rows].

    slope: [groups, qubits, rows]; otherwise as for `evolve`, which gave `evolved`.
    """
    if not circuit.reupload:
        return _gradient(circuit, angles, weights, evolved, slope, each=each)
    of_angles, of_weights = _gradient(
        circuit, *_apart(angles, weights), evolved, slope.transpose(1, 2).reshape(-1, slope.shape[1], 1), each=False
    )
    apart = of_weights.reshape(angles.shape[0], angles.shape[2], *weights.shape[1:])
    return _together(of_angles, angles.shape), apart.movedim(1, -1) if each else apart.sum(1)


def _apart(angles: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row a group: with re-uploading no two have the same gates."""
    groups, qubits, rows = angles.shape
    shared = weights.unsqueeze(1).expand(groups, rows, *weights.shape[1:]).reshape(groups * rows, *weights.shape[1:])
    return angles.transpose(1, 2).reshape(groups * rows, qubits, 1), shared


def _together(found: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """What was apart, [groups * rows, qubits, 1], as [groups, qubits, rows]."""
    groups, qubits, rows = shape
    return found.reshape(groups, rows, qubits).transpose(1, 2)


def _evolve(circuit: Circuit, angles: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, Evolved]:
    """As `evolve`; with re-uploading rows is 1."""
    plan, groups, rows = circuit.plan, angles.shape[0], angles.shape[2]
    gates = rot(weights)  # [groups, layers, qubits, plane, 2, 2]
    first = gates[:, 0] if circuit.embedding == "ry" else after_rx(gates[:, 0])
    state = _product_state(plan, first @ half_turns(angles)[:, :, None])
    later = gates[:, 1:]
    if circuit.reupload:
        later = product(later, (ry if circuit.embedding == "ry" else rx)(angles[..., 0])[:, None])
    matrices = matrices_of_layers(plan, later)
    size, other = 2**plan.left, 2**plan.right
    between, turned = [], [state.reshape(groups, 2 * size * other, rows)]
    for left, right in matrices:
        state = turned[-1].index_select(1, plan.ring).reshape(groups, 2 * size, other * rows)
        between.append(left @ state)
        state = between[-1].reshape(groups, 2, size, other, rows).transpose(2, 3)
        turned.append((right @ state.reshape(groups, 2 * other, size * rows)).reshape(groups, 2 * size * other, rows))
    return _for_each(plan.constants(weights.dtype).signs, groups) @ (turned[-1] * turned[-1]), Evolved(matrices, between, turned)


def _gradient(
    circuit: Circuit, angles: torch.Tensor, weights: torch.Tensor, evolved: Evolved, slope: torch.Tensor, *, each: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `gradient`; with re-uploading rows is 1."""
    plan, rows = circuit.plan, angles.shape[2]
    groups, size, other = angles.shape[0], 2**plan.left, 2**plan.right
    constants = plan.constants(weights.dtype)
    back = (_for_each(constants.signs.t(), groups) @ (2 * slope)).mul_(evolved.turned[-1])
    found: list[torch.Tensor] = []  # of each layer, the last first: [groups, qubits, 3, rows or 1]
    for layer in range(len(evolved.matrices), 0, -1):
        (left, right), before = evolved.matrices[layer - 1], evolved.between[layer - 1]
        on_right = _contract(evolved.turned[layer], back, constants.right, 2 * other, rows, each=each)
        state = (right.transpose(1, 2) @ back.reshape(groups, 2 * other, size * rows)).reshape(groups, 2, other, size, rows)
        back = state.transpose(2, 3).reshape(groups, 2 * size, other * rows)
        on_left = _contract(before, back, constants.left, 2 * size, rows, each=each)
        back = (left.transpose(1, 2) @ back).reshape(groups, 2 * size * other, rows).index_select(1, plan.back)
        found.insert(0, torch.cat((on_left, on_right), 1))
    found.insert(0, _first(plan, evolved.turned[0], back))
    rotations, embedded = _axes(circuit.embedding, weights)  # [groups, layers, qubits, 3 or 1, 3]
    of_angles = (embedded[:, 0] @ found[0])[:, :, 0] / 2
    for layer in range(1, len(found) if circuit.reupload else 0):
        of_angles = of_angles + (embedded[:, layer] @ found[layer])[:, :, 0] / 2
    summed = found if each else [found[0].sum(3, keepdim=True), *found[1:]]
    of_weights = rotations @ torch.stack(summed, 1) / 2
    return of_angles, of_weights if each else of_weights[..., 0]


def _for_each(constant: torch.Tensor, groups: int) -> torch.Tensor:
    """One view of a matrix for each group: a product of all groups at once would give a group other last bits among others."""
    return constant.unsqueeze(0).expand(groups, *constant.shape)


def _product_state(plan: Plan, qubits: torch.Tensor) -> torch.Tensor:
    """The turned state, [groups, plane, right, left, rows], of wires that each have their own, [groups, qubits, plane, 2, rows]."""
    halves = []
    for wires in (range(plan.left), range(plan.left, plan.qubits)):
        whole = qubits[:, wires[0]] if wires else one_like(qubits)
        for wire in wires[1:]:
            whole = outer(whole, qubits[:, wire]).flatten(-3, -2)
        halves.append(whole)
    return outer(halves[1], halves[0])


def matrices_of_layers(plan: Plan, gates: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The gates of some layers, [groups, layers, qubits, plane, 2, 2], as matrices of their halves."""
    if not gates.shape[1]:
        return []
    wires = gates.unbind(2)
    right = block(tensor_product(wires[plan.left :]))
    left = block(tensor_product(wires[: plan.left]) if plan.left else one_like(gates).expand(*gates.shape[:2], 2, 1, 1))
    return [(left[:, layer], right[:, layer]) for layer in range(gates.shape[1])]


def _first(plan: Plan, turned: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """What the first layer's state and gradient give for X, Y and Z, row by row: [groups, qubits, 3, rows]."""
    groups, _, rows = turned.shape
    size, other = 2**plan.left, 2**plan.right
    constants = plan.constants(turned.dtype)
    on_right = _contract(turned, back, constants.right, 2 * other, rows, each=True)
    state, slope = (one.reshape(groups, 2, other, size, rows).transpose(2, 3) for one in (turned, back))
    return torch.cat((_contract(state, slope, constants.left, 2 * size, rows, each=True), on_right), 1)


def _contract(state: torch.Tensor, back: torch.Tensor, contraction: torch.Tensor, size: int, rows: int, *, each: bool) -> torch.Tensor:
    """Im<back|P|state> on a half of `size` entries in both planes, for X, Y, Z: [groups, wires, 3, rows], or their sum over rows."""
    groups, wires = state.shape[0], contraction.shape[1] // 3
    constant = _for_each(contraction, groups)
    if each and rows > 1:
        one, other = (part.reshape(groups, size, -1, rows).permute(0, 3, 1, 2) for part in (state, back))
        pairs = (one @ other.transpose(2, 3)).reshape(groups, rows, -1)
        return (pairs @ constant).transpose(1, 2).reshape(groups, wires, 3, rows)
    pairs = state.reshape(groups, size, -1) @ back.reshape(groups, size, -1).transpose(1, 2)
    return (pairs.reshape(groups, 1, -1) @ constant).reshape(groups, wires, 3, 1)


def _axes(embedding: Embedding, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The axes, as (X, Y, Z), of each rotation of Rot and of the embedding before it, carried to the end of the layer's rotations.

    [groups, layers, qubits, 3, 3] and [groups, layers, qubits, 1, 3].
    """
    (p, t, w), (q, s, v) = torch.cos(weights).unbind(-1), torch.sin(weights).unbind(-1)
    nothing, one = torch.zeros_like(p), torch.ones_like(p)
    rotations = torch.stack((s * w, s * v, t, -v, w, nothing, nothing, nothing, one), -1).reshape(*p.shape, 3, 3)
    of_ry, of_rx = (-p * v - q * t * w, p * w - q * t * v, q * s), (p * t * w - q * v, p * t * v + q * w, -p * s)
    axis = of_ry if embedding == "ry" else of_rx
    return rotations, torch.stack(axis, -1).unsqueeze(-2)
