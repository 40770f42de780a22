"""<Z> of every wire of a layered circuit as a function that autograd knows, rows by rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qedge.quantum.statevector.evolution import Circuit, evolve, gradient

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx


def expectations(circuit: Circuit, angles: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """<Z> of every wire, [rows, qubits]. angles: [rows, qubits]; weights: [layers, qubits, 3]; see `evolution`."""
    if torch.compiler.is_exporting() or not torch.is_grad_enabled():
        return evolve(circuit, *_one_group(angles, weights))[0].squeeze(0).t()
    found: torch.Tensor = _Expectations.apply(angles, weights, circuit)  # type: ignore[no-untyped-call]
    return found


def gradients_of_rows(circuit: Circuit, angles: torch.Tensor, weights: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """The gradient of each row's sum(slope * <Z>) with respect to the weights, [rows, layers, qubits, 3].

    angles, slope: [rows, qubits]; weights: [layers, qubits, 3].
    """
    group = _one_group(angles, weights)
    _, evolved = evolve(circuit, *group)
    _, found = gradient(circuit, *group, evolved, slope.t().unsqueeze(0), each=True)
    return found.squeeze(0).movedim(-1, 0)


def _one_group(angles: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return angles.t().unsqueeze(0), weights.unsqueeze(0)


class _Expectations(torch.autograd.Function):
    """Its gradient goes backwards through the circuit by hand, at about the cost of the way forward; there is no second derivative."""

    @staticmethod
    def forward(ctx: FunctionCtx, angles: torch.Tensor, weights: torch.Tensor, circuit: Circuit) -> torch.Tensor:
        found, evolved = evolve(circuit, *_one_group(angles, weights))
        ctx.save_for_backward(angles, weights)
        ctx.evolved, ctx.circuit = evolved, circuit  # type: ignore[attr-defined]
        return found.squeeze(0).t()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        angles, weights = ctx.saved_tensors  # type: ignore[attr-defined]
        circuit, evolved = ctx.circuit, ctx.evolved  # type: ignore[attr-defined]
        of_angles, of_weights = gradient(circuit, *_one_group(angles, weights), evolved, slope.t().unsqueeze(0), each=False)
        return of_angles.squeeze(0).t(), of_weights.squeeze(0), None
