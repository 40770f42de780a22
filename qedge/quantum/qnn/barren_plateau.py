"""Barren plateaus: how fast gradients of random circuits vanish as qubits are added.

McClean et al., "Barren plateaus in quantum neural network training landscapes", Nature Communications 9 (2018): over random weights the
variance of a partial derivative falls exponentially in the qubits once a circuit is deep enough. Measured here for <Z> of wire 0 and the
first layer's second angle of that wire, weights even on [0, 2π), no input, and fitted as ln variance = a + b · qubits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import JsonValue
from scipy.stats import t

from qedge.errors import InvalidValue
from qedge.quantum.statevector.evolution import Circuit, evolve, gradient
from qedge.quantum.statevector.plan import Plan
from qedge.quantum.verdict import CONFIDENCE

_BLOCK = 1 << 20  # numbers of states held at once


@dataclass(frozen=True)
class Plateau:
    """qubits, variances, errors: one of each size, the last one standard deviation; slope, slope_error: b and its standard deviation;
    low, high: its 95 % interval. Exponential decay is claimed only where all of that lies below 0."""

    qubits: tuple[int, ...]
    variances: tuple[float, ...]
    errors: tuple[float, ...]
    slope: float
    slope_error: float
    low: float
    high: float

    @property
    def decays(self) -> bool:
        """Whether the variance falls exponentially, by this evidence."""
        return self.high < 0

    @property
    def per_qubit(self) -> float:
        """By what one more qubit multiplies the variance."""
        return math.exp(self.slope)

    def plain(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()} | {"decays": self.decays}


def gradient_variance(qubits: Sequence[int], layers: int, *, samples: int = 200, seed: int = 0, reupload: bool = False) -> Plateau:
    """The variance at each number of qubits, over so many random circuits, and the fit through them, weighted by their errors.

    Raises:
        InvalidValue: fewer than three sizes, fewer than 20 samples, or no layer.
        TooManyQubits: more than 12.
    """
    sizes = tuple(sorted(set(qubits)))
    if len(sizes) < 3 or samples < 20 or layers < 1:
        raise InvalidValue(
            f"accepted: three sizes or more, 20 samples or more, a layer or more; given: {list(sizes)}, {samples} samples, {layers} layers"
        )
    plans = [Plan(size) for size in sizes]
    generator = torch.Generator().manual_seed(seed)
    found = [_variance(_derivatives(Circuit(plan, reupload=reupload), layers, samples, generator)) for plan in plans]
    variances, errors = (np.array(part) for part in zip(*found, strict=True))
    slope, slope_error, free = _fit(np.array(sizes, dtype=np.float64), variances, errors)
    half = float(t.ppf((1 + CONFIDENCE) / 2, free)) * slope_error
    return Plateau(sizes, tuple(variances.tolist()), tuple(errors.tolist()), slope, slope_error, slope - half, slope + half)


def _derivatives(circuit: Circuit, layers: int, samples: int, generator: torch.Generator) -> np.ndarray:
    """One for each random circuit, [samples]."""
    qubits = circuit.plan.qubits
    most = max(1, _BLOCK // (layers * 2 ** (qubits + 1)))
    parts = []
    for start in range(0, samples, most):
        number = min(most, samples - start)
        weights = 2 * torch.pi * torch.rand(number, layers, qubits, 3, generator=generator, dtype=torch.float64)
        angles, slope = torch.zeros(2, number, qubits, 1, dtype=torch.float64)
        slope[:, 0] = 1
        _, evolved = evolve(circuit, angles, weights)
        parts.append(gradient(circuit, angles, weights, evolved, slope, each=False)[1][:, 0, 0, 1])
    return torch.cat(parts).numpy()


def _variance(values: np.ndarray) -> tuple[float, float]:
    """The variance and its standard deviation, from the fourth moment: normal values are not assumed."""
    centred = values - values.mean()
    second, fourth = float((centred**2).mean()), float((centred**4).mean())
    return second, math.sqrt(max(fourth - second**2, 0.0) / len(values))


def _fit(sizes: np.ndarray, variances: np.ndarray, errors: np.ndarray) -> tuple[float, float, int]:
    """b, its standard deviation (the larger of what the errors and what the scatter about the line imply), and degrees of freedom."""
    if not (variances > 1e-24).all():
        raise InvalidValue("the derivative is zero for every circuit drawn: it does not depend on this angle; accepted: more layers")
    weights = (variances / errors) ** 2  # of ln variance
    mean = (weights * sizes).sum() / weights.sum()
    spread = float((weights * (sizes - mean) ** 2).sum())
    logs = np.log(variances)
    slope = float((weights * (sizes - mean) * logs).sum() / spread)
    residuals = logs - (weights * logs).sum() / weights.sum() - slope * (sizes - mean)
    free = len(sizes) - 2
    return slope, math.sqrt(max(1.0, float((weights * residuals**2).sum()) / free) / spread), free
