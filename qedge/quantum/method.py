"""Which optimiser is used, and how far it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Method:
    """How a minimum is sought.

    steps: at most; tolerance: a change of the value at which gradients are followed no further; rate: Adam's learning rate, or the length
    of SPSA's first step; perturbation: SPSA's first shift of the parameters; flat: a smaller slope is that of a summit where SPSA begins,
    and would make its first step endless.
    """

    kind: Literal["lbfgs", "adam", "spsa"]
    steps: int
    rate: float
    tolerance: float = 1e-9
    perturbation: float = 0.1
    flat: float = 1e-12
