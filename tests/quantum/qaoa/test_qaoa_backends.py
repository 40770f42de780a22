"""QAOA on backends that are noisy, missing or too small."""

from __future__ import annotations

import pytest

from qedge.errors import QuantumError, TooManyQubits, UnknownBackend
from qedge.quantum.progress import Step
from qedge.quantum.qaoa.job import QAOA
from qedge.quantum.qaoa.study import run

SMALL = {"random_regular": {"degree": 3, "nodes": 6}, "layers": 2}


def test_noise_lowers_the_ratio_and_the_more_the_lower() -> None:
    rates = (0.0, 0.01, 0.05)
    ratios = [run(QAOA(**SMALL, backend={"name": "default.mixed", "noise": {"depolarizing": rate}})).value for rate in rates]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] == pytest.approx(run(QAOA(**SMALL)).value)


@pytest.mark.parametrize(
    ("nodes", "backend", "error"), [(6, {"name": "lightning.qubits"}, UnknownBackend), (20, {"name": "default.mixed"}, TooManyQubits)]
)
def test_a_backend_that_cannot_run_it_is_refused_before_any_angle_is_sought(
    nodes: int, backend: dict[str, object], error: type[QuantumError]
) -> None:
    told: list[Step] = []
    with pytest.raises(error):
        run(QAOA(random_regular={"degree": 3, "nodes": nodes}, backend=backend), on_step=told.append)
    assert not told
