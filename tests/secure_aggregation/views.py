"""What is left of vectors when the server has removed all that the shares revealed to it allow, and whether that looks uniform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from qedge.secure_aggregation.client import SecureClient
from qedge.secure_aggregation.masks import SignedSeed, add_masks
from qedge.secure_aggregation.member_secrets import SECRET_BYTES
from qedge.secure_aggregation.ring import Elements, Ring
from tests.secure_aggregation.coalition import Coalition
from tests.secure_aggregation.sessions import terms_of

TERMS = terms_of(4, bits=16, length=2)
SURVIVORS = (0, 1, 2)  # member 3 seals, and is lost before its masked vector
INPUTS = np.array([[0, 8000], [-8000, 8000], [3, -1], [0, 0]])
FALSE_ALARM = 1e-6
_BINS = 16
_ENOUGH = 10 * _BINS**2  # runs: five at least in each bin of pairs


@dataclass(frozen=True)
class Views:
    """left: [runs, survivors, length] ring elements; escrow: [runs, survivors, survivors, 32] bytes, for each other, own places zero."""

    left: np.ndarray
    escrow: np.ndarray


def taken(runs: int, kind: type[SecureClient]) -> Views:
    """Of so many whole sessions with the same vectors."""
    left, escrow = [], np.zeros((runs, len(SURVIVORS), len(SURVIVORS), SECRET_BYTES), np.uint8)
    for run in range(runs):
        coalition = Coalition(TERMS, kind=kind)
        coalition.vectors = INPUTS
        coalition.join()
        coalition.seal(dict.fromkeys(coalition.members, coalition.directory())).mask(SURVIVORS)
        coalition.agree(dict.fromkeys(SURVIVORS, SURVIVORS)).reveal(SURVIVORS).recover()
        left.append([coalition.left_of(place, SURVIVORS) for place in SURVIVORS])
        for one in SURVIVORS:
            for at, other in enumerate(place for place in SURVIVORS if place != one):
                escrow[run, one, other] = np.frombuffer(coalition.masked[one].escrow, np.uint8)[SECRET_BYTES * at :][:SECRET_BYTES]
    return Views(np.array(left), escrow)


def surprises(views: Views) -> list[str]:
    """What would be seen in a uniform view with a probability of `FALSE_ALARM` at most, all statistics together.

    Uniform given the sum: any two of the three survivors' entries, and all entries of two of them, are independent and uniform. Chi-square
    on the high and the low four bits, alone and, where there are runs enough, in pairs; means weighed with the inputs; bytes of what is
    left in escrow, and of what two members leave for each other.
    """
    found = {
        **_of_entries(views.left.reshape(len(views.left), -1)),
        **_of_means(views.left),
        **_of_escrows(views.escrow),
    }
    return [name for name, probability in found.items() if probability < FALSE_ALARM / len(found)]


def _of_entries(entries: np.ndarray) -> dict[str, float]:
    found = {}
    for bits, shift in (("high", TERMS.bits - 4), ("low", 0)):
        parts = (entries >> shift).astype(np.int64) % _BINS
        for one in range(parts.shape[1]):
            found[f"{bits} bits of entry {one}"] = _uniform(parts[:, one], _BINS)
            if len(parts) >= _ENOUGH:
                found[f"{bits} bits of entry {one} in two runs"] = _uniform(_BINS * parts[:-1:2, one] + parts[1::2, one], _BINS**2)
        for one, other in combinations(range(parts.shape[1] if len(parts) >= _ENOUGH else 0), 2):
            found[f"{bits} bits of entries {one} and {other}"] = _uniform(_BINS * parts[:, one] + parts[:, other], _BINS**2)
    return found


def _of_means(left: np.ndarray) -> dict[str, float]:
    """Of each survivor's entries weighed with its own vector, and with all the others', against a uniform variable's."""
    centred = TERMS.ring.centred(left) + 0.5
    deviation = np.sqrt((4.0**TERMS.bits - 1) / 12)
    found = {}
    for place in SURVIVORS:
        for whose in SURVIVORS:
            weights = INPUTS[whose]
            score = (centred[:, place] @ weights).sum() / (deviation * np.linalg.norm(weights) * np.sqrt(len(centred)))
            found[f"what is left of member {place} along the vector of {whose}"] = 2 * stats.norm.sf(abs(score))
    return found


def _of_escrows(escrow: np.ndarray) -> dict[str, float]:
    found = {}
    for one, other in combinations(SURVIVORS, 2):
        found[f"what {one} leaves for {other}"] = _uniform(escrow[:, one, other].ravel(), 256)
        found[f"what {one} and {other} leave for each other"] = _uniform((escrow[:, one, other] ^ escrow[:, other, one]).ravel(), 256)
    return found


def _uniform(values: np.ndarray, bins: int) -> float:
    return float(stats.chisquare(np.bincount(values, minlength=bins)).pvalue)


def add_narrow_masks(total: Elements, ring: Ring, seeds: Sequence[SignedSeed]) -> None:
    """Masks shared in pairs of 12 bits where the ring has 16; the own one, which comes first, as it should be."""
    add_masks(total, ring, seeds[:1])
    for seed, sign in seeds[1:]:
        mask = np.zeros_like(total)
        add_masks(mask, ring, [(seed, 1)])
        total += (sign * (mask & 0xFFF).astype(np.int64)).astype(total.dtype)
