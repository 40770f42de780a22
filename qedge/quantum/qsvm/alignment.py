"""Whether a kernel can learn: how it is aligned with the labels, and whether its entries have concentrated.

Sources: N. Cristianini et al., "On Kernel-Target Alignment" (2001); centred: C. Cortes, M. Mohri, A. Rostamizadeh, JMLR 13 (2012) 795.
Concentration: S. Thanasilp et al., "Exponential concentration in quantum kernel methods", Nature Communications 15, 5200 (2024): where
entries differ by less than shots can tell, a model on hardware would not depend on its data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from qedge.quantum.qsvm.feature_maps import Reals

CONCENTRATED = 200  # shots an entry; random states of 8 qubits need 256, and twice as many with every further one


def alignment(gram: Reals, labels: NDArray[np.int64]) -> float:
    """Centred alignment of a Gram matrix [n, n] with the one that labels would make (1 within a class, 0 across); between -1 and 1."""
    ideal = (labels[:, np.newaxis] == labels).astype(np.float64)
    one, other = _centred(gram), _centred(ideal)
    size = math.sqrt(float((one * one).sum()) * float((other * other).sum()))
    return float((one * other).sum()) / size if size > 0 else 0.0


def _centred(gram: Reals) -> Reals:
    means = gram.mean(axis=0)
    return np.asarray(gram - means - means[:, np.newaxis] + float(means.mean()))


@dataclass(frozen=True)
class Concentration:
    """The entries off the diagonal: mean, variance, and how many shots an entry needs for an error as small as they differ."""

    mean: float
    variance: float
    shots: int | None

    @property
    def warning(self) -> str:
        """What it means, or nothing."""
        if self.shots is not None and self.shots <= CONCENTRATED:
            return ""
        needed = "no number of shots tells" if self.shots is None else f"about {self.shots} shots an entry would tell"
        return (
            f"the kernel has concentrated: its entries have mean {self.mean:.2g} and variance {self.variance:.2g}, and {needed} one from "
            "another; a smaller bandwidth, fewer qubits or a projected kernel may help"
        )

    def plain(self) -> dict[str, JsonValue]:
        """As JSON."""
        return dict(vars(self))


def concentration(gram: Reals) -> Concentration:
    """Of a Gram matrix [n, n], n being 2 or more."""
    entries = gram[np.triu_indices(len(gram), 1)]
    variance = float(entries.var())
    binomial = float((entries * (1 - entries)).mean())
    return Concentration(float(entries.mean()), variance, math.ceil(max(1.0, binomial / variance)) if variance > 0 else None)
