"""How long a bit lasts in a repetition code or a rotated surface code, decoded by matching, against how often its parts fail.

Noise is phenomenological: before each of `distance` rounds every data qubit is flipped with probability p, and every syndrome bit is read
wrong with probability p; under code capacity there is one round and syndromes are read right. Data qubits are read at the end, wrong with
probability p as well where syndromes are.

Source: E. Dennis, A. Kitaev, A. Landahl, J. Preskill, J. Math. Phys. 43, 4452 (2002); thresholds of minimum-weight matching for the surface
code, 0.1031 (capacity) and 0.0293 (phenomenological): C. Wang, J. Harrington, J. Preskill, Ann. Phys. 303, 31 (2003). Sampling by stim (C.
Gidney, Quantum 5, 497 (2021)), decoding by pymatching (O. Higgott, C. Gidney, Quantum 9, 1600 (2025)).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue
from scipy.stats import beta

from qedge.errors import BackendUnavailable, InvalidValue
from qedge.quantum.error_correction.threshold import Threshold, crossing
from qedge.quantum.progress import OnStep, Step, untold
from qedge.quantum.resources import Resources
from qedge.quantum.result import Baseline, Result
from qedge.quantum.verdict import CONFIDENCE, compare

if TYPE_CHECKING:
    import stim

Code = Literal["repetition", "surface"]
Noise = Literal["phenomenological", "capacity"]

_TASKS = {"repetition": "repetition_code:memory", "surface": "surface_code:rotated_memory_z"}
MOST_DISTANCE = 51
BATCH = 10_000


@dataclass(frozen=True)
class Point:
    """A code of one distance at one physical error rate. low, high: the exact 95 % interval of the logical rate; unencoded: that of a bit
    that is not encoded, over as many rounds.
    """

    distance: int
    physical: float
    rounds: int
    shots: int
    failures: int
    low: float
    high: float
    unencoded: float

    @property
    def logical(self) -> float:
        """How often the bit was lost."""
        return self.failures / self.shots

    @property
    def error(self) -> float:
        """One standard deviation of the logical rate; of one failure where there was none."""
        rate = max(self.failures, 1) / self.shots
        return float((rate * max(1 - rate, 1 / self.shots) / self.shots) ** 0.5)


@dataclass(frozen=True)
class MemoryStudy:
    """Logical against physical error rates. threshold: where the curves of the two largest distances cross, None where they do not."""

    code: Code
    noise: Noise
    points: tuple[Point, ...]
    threshold: Threshold | None
    resources: Resources

    def plain(self) -> dict[str, JsonValue]:
        """As JSON, for plots."""
        points: list[JsonValue] = [{**vars(one), "logical": one.logical} for one in self.points]
        crossed: JsonValue = None if self.threshold is None else dict(vars(self.threshold))
        return {"code": self.code, "noise": self.noise, "points": points, "threshold": crossed}

    def result(self) -> Result:
        """The largest code at the lowest physical rate, beside a bit that is not encoded."""
        lowest = min(one.physical for one in self.points)
        best = max((one for one in self.points if one.physical == lowest), key=lambda one: one.distance)
        name = f"{self.code} code of distance {best.distance}, physical error rate {best.physical:g}"
        how = f"one bit, not encoded, over the same {best.rounds} rounds; exact"
        return Result(
            kind="memory",
            title=name,
            quantity=f"probability of losing the bit in {best.rounds} rounds",
            value=best.logical,
            error=best.error,
            baseline=Baseline("unencoded memory", best.unencoded, how=how),
            compared=compare(best.logical, best.unencoded, better="lower", error=best.error),
            resources=self.resources,
            details=self.plain(),
        )


def memory_study(
    code: Code = "surface",
    *,
    distances: Sequence[int] = (3, 5, 7),
    rates: Sequence[float] = (0.02, 0.025, 0.03, 0.035, 0.04),
    shots: int = 10_000,
    noise: Noise = "phenomenological",
    seed: int = 0,
    on_step: OnStep = untold,
) -> MemoryStudy:
    """Every distance at every physical error rate, `shots` times each.

    distances: odd, from 3; rates: between 0 and 0.5, both excluded.

    Raises:
        InvalidValue: an unknown code or noise, distances, rates or shots outside these, or any of them twice.
        BackendUnavailable: stim or pymatching is not installed.
    """
    _refuse(code, noise, distances, rates, shots)
    _refuse_missing()
    begun = time.monotonic()
    number, points = len(distances) * len(rates), list[Point]()
    for distance in sorted(distances):
        for rate in sorted(rates):
            points.append(_point(code, noise, distance, rate, shots, seed + len(points)))
            on_step(Step(f"distance {distance}, error rate {rate:g}", len(points), number, points[-1].logical))
    found = {distance: [one for one in points if one.distance == distance] for distance in sorted(distances)}
    threshold = None
    if len(distances) > 1 and len(rates) > 1:
        small, large = list(found.values())[-2:]
        threshold = crossing(
            [one.physical for one in small], [one.failures for one in small], [one.failures for one in large], shots, seed=seed
        )
    largest = circuit_of(code, noise, max(distances), min(rates))
    return MemoryStudy(code, noise, tuple(points), threshold, _resources(largest, shots, number, time.monotonic() - begun))


def circuit_of(code: Code, noise: Noise, distance: int, rate: float) -> stim.Circuit:
    """The circuit, with its noise and what is compared."""
    _refuse_missing()
    import stim

    read = rate if noise == "phenomenological" else 0.0
    # Of stim's depolarizing, two of three Paulis flip the bit that is kept.
    return stim.Circuit.generated(
        _TASKS[code],
        distance=distance,
        rounds=_rounds(noise, distance),
        before_round_data_depolarization=1.5 * rate,
        before_measure_flip_probability=read,
    )


def _rounds(noise: Noise, distance: int) -> int:
    return distance if noise == "phenomenological" else 1


def _point(code: Code, noise: Noise, distance: int, rate: float, shots: int, seed: int) -> Point:
    import pymatching

    circuit = circuit_of(code, noise, distance, rate)
    matching = pymatching.Matching.from_detector_error_model(circuit.detector_error_model(decompose_errors=True))
    sampler = circuit.compile_detector_sampler(seed=seed)
    failures = 0
    for batch in _batches(shots):
        detected, flipped = sampler.sample(batch, separate_observables=True)
        failures += int((matching.decode_batch(detected)[:, 0] != flipped[:, 0]).sum())
    rounds = _rounds(noise, distance)
    low, high = exact_interval(failures, shots)
    return Point(distance, rate, rounds, shots, failures, low, high, (1 - (1 - 2 * rate) ** rounds) / 2)


def exact_interval(failures: int, shots: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a probability, Biometrika 26, 404 (1934)."""
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if failures == 0 else float(beta.ppf(tail, failures, shots - failures + 1))
    high = 1.0 if failures == shots else float(beta.ppf(1 - tail, failures + 1, shots - failures))
    return low, high


def _batches(shots: int) -> Iterator[int]:
    for begin in range(0, shots, BATCH):
        yield min(BATCH, shots - begin)


def _resources(circuit: stim.Circuit, shots: int, circuits: int, seconds: float) -> Resources:
    gates = cx = depth = 0
    for instruction in circuit.flattened():
        if instruction.name == "TICK":
            depth += 1
        elif instruction.name in ("H", "CX"):
            groups = len(instruction.target_groups())
            gates += groups
            cx += groups * (instruction.name == "CX")
    return Resources(circuit.num_qubits, gates, cx, depth, shots * circuits, circuits, seconds)


def _refuse(code: str, noise: str, distances: Sequence[int], rates: Sequence[float], shots: int) -> None:
    if code not in _TASKS:
        raise InvalidValue(f"unknown code '{code}'; accepted: {', '.join(_TASKS)}", given=code)
    if noise not in ("phenomenological", "capacity"):
        raise InvalidValue(f"unknown noise '{noise}'; accepted: phenomenological, capacity", given=noise)
    if not distances or any(one % 2 == 0 or not 3 <= one <= MOST_DISTANCE for one in distances) or len(set(distances)) < len(distances):
        raise InvalidValue(f"distances are different odd numbers from 3 to {MOST_DISTANCE}; given {list(distances)}", given=list(distances))
    if not rates or any(not 0 < one < 0.5 for one in rates) or len(set(rates)) < len(rates):
        raise InvalidValue(f"physical error rates are different numbers between 0 and 0.5; given {list(rates)}", given=list(rates))
    if shots < 1:
        raise InvalidValue(f"shots are at least 1; given {shots}", given=shots)


def _refuse_missing() -> None:
    if missing := [name for name in ("stim", "pymatching") if find_spec(name) is None]:
        raise BackendUnavailable(
            f"a study of memories needs {' and '.join(missing)}: pip install 'qedge[memory]'", given="memory", missing=" ".join(missing)
        )
