"""Clients of one node: what is made ready ahead changes when it is computed, never what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.data.federation import Rows
from qedge.federated import client as client_module
from qedge.federated.client import FederatedClient
from qedge.federated.messages import Broadcast, Chunk, ClientSpec
from qedge.federated.randomness import RunKey
from qedge.job import Algorithm, Model
from qedge.privacy.clipping import Grid

FEATURES, CLASSES = 5, 3


def _client(sizes: list[int], *, private: bool, kernel: str, seed: int = 0) -> FederatedClient:
    generator = np.random.default_rng(seed)
    rows = sum(sizes)
    train = Rows(
        generator.standard_normal((rows, FEATURES), dtype=np.float32),
        generator.integers(0, CLASSES, rows),
        np.cumsum([0, *sizes]),
    )
    algorithm = Algorithm.model_validate({"batch_size": 4, "local_epochs": 2, "learning_rate": 0.2, "kernel": kernel})
    spec = ClientSpec(
        model=Model(kind="linear"),
        features=FEATURES,
        classes=CLASSES,
        algorithm=algorithm,
        kernel=kernel,
        grid=Grid(0.5, (FEATURES + 1) * CLASSES) if private else None,
        count_weight=0,
        key=RunKey.from_seed(seed),
        seed=seed,
    )
    return FederatedClient(spec, train, None)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 11), min_size=4, max_size=9),
    private=st.booleans(),
    kernel=st.sampled_from(["stacked", "sequential"]),
    said=st.sampled_from(["the same", "another round", "other chunks", "a part"]),
)
def test_what_was_made_ready_ahead_moves_no_bit(sizes, private, kernel, said):
    chunks = [Chunk(np.array([0, 1, 2])), Chunk(np.arange(3, len(sizes)))]
    weights = np.linspace(-1, 1, (FEATURES + 1) * CLASSES, dtype=np.float32)
    expected = _client(sizes, private=private, kernel=kernel).partial_sum(Broadcast(7, weights), chunks)
    ready = _client(sizes, private=private, kernel=kernel)
    if said == "another round":
        ready.prepare(6, chunks)
    else:
        ready.prepare(
            7, {"the same": chunks, "other chunks": [Chunk(np.array([0, 1])), Chunk(np.array([2, 3]))], "a part": chunks[1:]}[said]
        )
    got = ready.partial_sum(Broadcast(7, weights), chunks)
    assert got.total.tobytes() == expected.total.tobytes()
    assert got.weight == expected.weight


def test_scaffold_takes_clients_as_equals_however_many_rows_they_hold():
    """Karimireddy et al., algorithm 1: the mean over clients; weighting updates and not control variates would move the fixed point."""
    sizes, params = [3, 9, 0], (FEATURES + 1) * CLASSES
    weights, controls = np.linspace(-1, 1, params, dtype=np.float32), np.zeros((3, params), dtype=np.float32)
    one = _client(sizes, private=False, kernel="sequential")
    each = [one.partial_sum(Broadcast(1, weights), [Chunk(np.array([k]))]) for k in range(2)]
    got = one.partial_sum(Broadcast(1, weights, np.zeros(params, dtype=np.float32)), [Chunk(np.arange(3), controls)])
    assert [part.weight for part in each] == [3, 9]
    assert got.weight == 2
    expected = sum(part.total / part.weight for part in each)
    np.testing.assert_allclose(got.total, expected, atol=8 + 1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("private", [True, False])
def test_what_is_made_ready_stops_with_the_chunk_that_fills_the_room_and_padding_counts(monkeypatch, private):
    """Under privacy one row is padded to sixteen, and lies there once for the forward and once for the backward product."""
    chunks = [Chunk(np.array([k, k + 1])) for k in range(0, 40, 2)]
    floats = 2 * (16 if private else 1) * FEATURES * 2  # two clients, rows, features, two layouts
    room = 5 * 4 * floats
    monkeypatch.setattr(client_module, "AHEAD_BYTES", room)
    ready = _client([1] * 40, private=private, kernel="stacked")
    ready.prepare(1, chunks)
    assert 1 <= len(ready.ahead) <= 5
    *kept, last = (ready.kernel.bytes_of(prepared) for prepared, _ in ready.ahead.values())
    assert sum(kept) < room <= sum(kept) + last


def test_a_round_that_was_made_ready_is_forgotten_once_it_ran_or_another_is_announced():
    ready = _client([3, 3], private=True, kernel="stacked")
    chunks = [Chunk(np.array([0])), Chunk(np.array([1]))]
    ready.prepare(1, chunks)
    ready.prepare(2, chunks)
    assert {number for number, _ in ready.ahead} == {2}
    ready.partial_sum(Broadcast(2, np.zeros((FEATURES + 1) * CLASSES, dtype=np.float32)), chunks)
    assert not ready.ahead
