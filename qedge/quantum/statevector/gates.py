"""One-qubit rotations and their tensor products in real arithmetic: the real plane, then the imaginary one.

PennyLane's conventions: R_P(a) = exp(-i a P / 2), and Rot(phi, theta, omega) = RZ(omega) RY(theta) RZ(phi).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_NO_ENTRY = ((1.0,), (0.0,))


def rot(weights: torch.Tensor) -> torch.Tensor:
    """Rot of (phi, theta, omega), [..., 3]: [..., plane, row, column]."""
    phi, theta, omega = (weights / 2).unbind(-1)
    mean, difference = phi + omega, phi - omega
    c, s = torch.cos(theta), torch.sin(theta)
    same, other = torch.cos(mean) * c, torch.cos(difference) * s
    same_i, other_i = torch.sin(mean) * c, torch.sin(difference) * s
    entries = (same, -other, other, same, -same_i, -other_i, -other_i, same_i)
    return torch.stack(entries, -1).reshape(*c.shape, 2, 2, 2)


def half_turns(angles: torch.Tensor) -> torch.Tensor:
    """(cos, sin) of half the angles, [..., rows] to [..., 2, rows]: RY(angle)|0>."""
    half = angles / 2
    return torch.stack((torch.cos(half), torch.sin(half)), -2)


def after_rx(gates: torch.Tensor) -> torch.Tensor:
    """Gates [..., plane, row, column] times diag(1, -i), which takes RY(angle)|0> to RX(angle)|0>."""
    real, imaginary = gates.unbind(-3)
    first, second = gates[..., :1], torch.stack((imaginary, -real), -3)[..., 1:]
    return torch.cat((first, second), -1)


def rx(angles: torch.Tensor) -> torch.Tensor:
    """RX, [...] to [..., plane, row, column]."""
    c, s, nothing = torch.cos(angles / 2), torch.sin(angles / 2), torch.zeros_like(angles)
    return torch.stack((c, nothing, nothing, c, nothing, -s, -s, nothing), -1).reshape(*angles.shape, 2, 2, 2)


def ry(angles: torch.Tensor) -> torch.Tensor:
    """RY, [...] to [..., plane, row, column]."""
    c, s, nothing = torch.cos(angles / 2), torch.sin(angles / 2), torch.zeros_like(angles)
    return torch.stack((c, -s, s, c, nothing, nothing, nothing, nothing), -1).reshape(*angles.shape, 2, 2, 2)


def product(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Matrix product of gates in planes, [..., plane, row, column]; `before` acts first."""
    (a, b), (c, d) = after.unbind(-3), before.unbind(-3)
    return torch.stack((a @ c - b @ d, a @ d + b @ c), -3)


def tensor_product(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of factors [..., plane, rows, columns], the first acting on the most significant qubit; of none, the number 1."""
    whole, *rest = factors
    for factor in rest:
        pairs = whole[..., :, None, :, None, :, None] * factor[..., None, :, None, :, None, :]  # [..., plane, plane, r, r, c, c]
        whole = _complex(pairs, -6).flatten(-2).flatten(-3, -2)
    return whole


def outer(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Row by row the tensor product of vectors [..., plane, entries, rows], `first` the more significant: [..., plane, e, e, rows]."""
    return _complex(first[..., :, None, :, None, :] * second[..., None, :, None, :, :], -5)


def block(planes: torch.Tensor) -> torch.Tensor:
    """[..., plane, rows, columns] as the real matrix [..., 2 rows, 2 columns] that acts on real parts above imaginary parts."""
    real, imaginary = planes.unbind(-3)
    return torch.cat((torch.cat((real, -imaginary), -1), torch.cat((imaginary, real), -1)), -2)


def one_like(tensor: torch.Tensor) -> torch.Tensor:
    """The number 1 in planes, [plane, 1, 1], in the dtype of `tensor`."""
    return tensor.new_tensor(_NO_ENTRY)[:, None]


def _complex(pairs: torch.Tensor, first: int) -> torch.Tensor:
    """Products of (real, imaginary) with (real, imaginary), on dimensions `first` and the one after it, added up to planes."""
    one, other = pairs.unbind(first)
    (rr, ri), (ir, ii) = one.unbind(first + 1), other.unbind(first + 1)
    return torch.stack((rr - ii, ri + ir), first + 1)
