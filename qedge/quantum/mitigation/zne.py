"""Zero-noise extrapolation: the same circuit with more and more noise, and the curve read where there would be none.

Shots go to scales in proportion to what each counts for in a line through them, which gives the smallest error bar for their sum. Where
the noise is weak beside what shots draw, a correction does more harm than good: of it, as much is taken as has the smallest mean squared
error. The error bar is that of the whole correction.

Source: K. Temme, S. Bravyi, J. Gambetta, Phys. Rev. Lett. 119, 180509 (2017); Giurgica-Tiron et al. (2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pennylane.tape import QuantumScript

from qedge.errors import InvalidValue
from qedge.quantum.mitigation.extrapolation import Extrapolated, extrapolate, shrunk, weights_at_zero
from qedge.quantum.mitigation.folding import fold
from qedge.quantum.mitigation.job import Mitigation
from qedge.quantum.mitigation.mitigated import Estimate
from qedge.quantum.mitigation.settings import Measurement, divided, gates


@dataclass(frozen=True)
class Folded:
    """The circuits of each scale. scales: as they came out, which whole gates may make other than what was asked."""

    scales: tuple[float, ...]
    circuits: tuple[tuple[QuantumScript, ...], ...]


def construct(circuit: QuantumScript, measurement: Measurement, asked: Mitigation, shots: int | None) -> Folded:
    """The circuits to run; shots: of each, before they are divided anew.

    Raises:
        InvalidCircuit: a gate that cannot be folded.
        InvalidValue: a circuit so short that too few scales are left for the curve, as others come to the same.
    """
    plain = gates(circuit)
    folded = list(
        {scale: (found, scale) for found, scale in (fold(plain, one, asked.folding) for one in sorted(asked.scale_factors))}.values()
    )
    scales = tuple(scale for _, scale in folded)
    if len(scales) < asked.fewest_scales:
        raise InvalidValue(
            f"a circuit of {len(plain)} gates is folded to {list(scales)} times its length, too few for {asked.extrapolation} "
            "extrapolation; give scale factors further apart",
            given=list(scales),
        )
    each: list[int | None] = [None] * len(scales)
    if shots is not None:
        total = (measurement.shots(shots) or 0) * len(scales)
        line = np.abs(weights_at_zero(np.asarray(scales), _degree(asked, len(scales)), np.ones(len(scales))))
        each = list(divided(total, np.maximum(line, 0.1 * line.max()).tolist()))
    return Folded(scales, tuple(tuple(measurement.circuits(one, number)) for (one, _), number in zip(folded, each, strict=True)))


def combine(folded: Folded, estimates: Sequence[Estimate], measurement: Measurement, asked: Mitigation) -> tuple[Extrapolated, float]:
    """The value without noise, of the values at each scale, and how much of the correction was taken."""
    known = {"trace": measurement.constant, "fitted": None}
    asymptote = known[asked.asymptote] if isinstance(asked.asymptote, str) else asked.asymptote
    values, variances = [one.value for one in estimates], [one.variance for one in estimates]
    found = extrapolate(folded.scales, values, variances, asked.extrapolation, degree=asked.degree, asymptote=asymptote)
    taken = shrunk(found, values[0], variances) if asked.shrunk else 1.0
    return replace(found, value=values[0] + taken * (found.value - values[0])), taken


def _degree(asked: Mitigation, scales: int) -> int:
    if asked.extrapolation == "richardson":
        return scales - 1
    return asked.degree if asked.extrapolation == "polynomial" else 1
