"""The bench of secure sums measures whole sessions, whose sums it checks itself."""

from __future__ import annotations

import numpy as np
import pytest

from qedge.errors import SumAborted
from qedge.secure_aggregation.identity import SIGNATURES
from tests.benchmarks.secure import BOUND, KINDS, RING, Group, Match, ours, share_of

LENGTH = 200


def _vectors(members: int) -> np.ndarray:
    vectors = np.random.default_rng(members).standard_normal((members, LENGTH), dtype=np.float32)
    return vectors * np.float32(BOUND) / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_measured_sum_is_that_of_the_members_that_stayed(kind: str) -> None:
    taken = ours(_vectors(10), [0, 4, 9], kind)
    assert taken.wrong == 0
    assert taken.error < BOUND / (16 * LENGTH**0.5)  # a step of the grid: the mean of roundings less than one apart


def test_a_measured_client_sends_a_masked_vector_a_sealed_message_for_each_peer_and_five_signatures() -> None:
    taken = {kind: ours(_vectors(10), [2], kind) for kind in KINDS}
    assert set(taken["ed25519"].client) == {"round", "join", "seal", "mask", "agree", "reveal"}
    assert set(taken["ed25519"].server) == {"join", "seal", "mask", "agree", "reveal", "unmask"}
    assert all(seconds > 0 for seconds in (*taken["ed25519"].client.values(), *taken["ed25519"].server.values()))
    assert taken["ed25519"].up > RING.wire_bytes(LENGTH) + 9 * 1120
    longer = taken["ml-dsa-65"].up - taken["ed25519"].up
    assert longer == pytest.approx(5 * (SIGNATURES["ml-dsa-65"][1] - SIGNATURES["ed25519"][1]), abs=20)  # lengths take a byte more
    assert taken["ed25519"].down > 4 * LENGTH + 9 * 1120


def test_a_sum_that_is_not_the_plain_one_is_counted_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    summed = Group.sum

    def off_by_one(*arguments: object) -> np.ndarray:
        return summed(*arguments) + (np.arange(LENGTH) == 7)  # type: ignore[arg-type]

    monkeypatch.setattr(Group, "sum", off_by_one)
    assert ours(_vectors(5), [], "ed25519").wrong == 1


def test_more_lost_members_than_the_threshold_allows_end_the_measurement() -> None:
    with pytest.raises(SumAborted):
        ours(_vectors(10), [0, 1, 2, 3], "ed25519")


@pytest.mark.parametrize(("members", "threshold", "lost"), [(10, 7, 3), (50, 34, 15), (100, 67, 30)])
def test_as_many_members_stay_as_the_threshold_asks_for(members: int, threshold: int, lost: int) -> None:
    assert (share_of(members, 67), Match(members, LENGTH).lost) == (threshold, lost)
    assert members - lost >= threshold
