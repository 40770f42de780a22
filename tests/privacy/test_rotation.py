"""The rotation against dense Hadamard matrices, its reach against its worst inputs, and rings against every sum they must hold."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from qedge.errors import InvalidPrivacy, ModelError
from qedge.privacy.clipping import Grid, to_grid
from qedge.privacy.distributed import noise_reach
from qedge.privacy.rotation import Rotation, mixed_entries, ring_bits, rotation_pays, signal_reach

SEED = bytes(range(32))
dimensions = st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 256, 600, 1024]))
GRID = 25_625_000  # squared sensitivity of a hundred thousand parameters


def matrix(rotation: Rotation) -> np.ndarray:
    """Columns are the rotated unit vectors."""
    return rotation.forward(np.eye(rotation.dimensions)).T


@given(dimensions, st.binary(min_size=16, max_size=40))
@settings(max_examples=30, deadline=None)
def test_it_is_orthonormal_and_goes_back(size: int, seed: bytes) -> None:
    rotation = Rotation(seed, size)
    turned = matrix(rotation)
    assert np.allclose(turned @ turned.T, np.eye(size), atol=1e-12)
    vector = np.random.default_rng(size).normal(size=size)
    assert np.allclose(turned @ vector, rotation.forward(vector[None])[0], atol=1e-12)
    assert np.allclose(rotation.backward(turned @ vector), vector, atol=1e-12)


@given(dimensions)
@settings(max_examples=30, deadline=None)
def test_it_is_two_overlapping_hadamard_matrices_with_signs(size: int) -> None:
    block = mixed_entries(size)
    assert block <= size < 2 * block
    rotation = Rotation(SEED, size)
    turned = matrix(rotation)
    transform = hadamard(block) / math.sqrt(block)
    last = np.eye(size)
    if block < size:
        # The first size-block coordinates are final after the first stage: their rows give its signs.
        signs = np.sign(turned[0, :block])
        first = np.eye(size)
        first[:block, :block] = transform * signs
        last = turned @ first.T
        assert np.allclose(last[: size - block], np.eye(size)[: size - block], atol=1e-12)
    corner = (turned if block == size else last)[-block:, -block:]
    assert np.allclose(np.abs(corner), 1 / math.sqrt(block), atol=1e-12)
    assert np.allclose(corner, transform * np.sign(corner[0]), atol=1e-12)


@given(st.integers(1, 2000), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_sum_comes_back_from_the_sum_of_the_rotated(size: int, clients: int) -> None:
    vectors = np.random.default_rng(size).normal(size=(clients, size)).astype(np.float32)
    rotation = Rotation(SEED, size)
    assert np.allclose(rotation.backward(rotation.forward(vectors).sum(axis=0)), vectors.sum(axis=0), atol=1e-5)


def test_a_client_alone_gets_the_same_bits_as_among_others() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 3000))
    together = Rotation(SEED, 3000).forward(vectors)
    for row, vector in zip(together, vectors, strict=True):
        assert (Rotation(SEED, 3000).forward(vector[None])[0] == row).all()


def test_inputs_are_left_as_they_were() -> None:
    vectors, total = np.ones((2, 300)), np.ones(300)
    vectors.flags.writeable = total.flags.writeable = False
    rotation = Rotation(SEED, 300)
    rotation.forward(vectors)
    rotation.backward(total)
    assert (vectors == 1).all()
    assert (total == 1).all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1.7e308])
@pytest.mark.parametrize("size", [2, 300, 4096])
def test_an_update_that_is_not_finite_becomes_zeros_moves_no_other_and_nobody_is_told(size: int, bad: float) -> None:
    updates, grid = np.ones((3, size)), Grid(1.0, size)
    expected = Rotation(SEED, size).forward(updates)[[0, 2]]
    updates[1] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rotated = Rotation(SEED, size).forward(updates)
        rounded = to_grid(rotated, grid, np.random.default_rng(0), np.random.default_rng)
    assert (rotated[[0, 2]] == expected).all()
    assert not rounded[1].any()


def test_the_same_seed_is_the_same_rotation_and_another_seed_another() -> None:
    """The values pin the stream of signs: both sides of a network must derive the same."""
    vector = np.arange(1.0, 6.0)[None]
    once, again = Rotation(SEED, 5).forward(vector), Rotation(SEED, 5).forward(vector)
    assert (once == again).all()
    assert once[0].tolist() == [3.0, -2.0, -1.0, 5.0, -4.0]
    others = {Rotation(bytes([byte]) * 16, 100).forward(np.ones((1, 100))).tobytes() for byte in range(50)}
    assert len(others) == 50


def test_signs_are_fair_and_the_two_stages_have_their_own() -> None:
    """Of n fair signs the mean has standard deviation 1/sqrt(n): six of them thrice, 6e-9, for a seed drawn by nobody."""
    rotation = Rotation(SEED, 100_000)
    first, last = np.sign(rotation._first), np.sign(rotation._last)
    for signs in (first, last, first * last):
        assert abs(signs.mean()) < 6 / len(signs) ** 0.5


@pytest.mark.parametrize("size", [512, 600, 1000])
def test_no_coordinate_of_hard_vectors_passes_the_reach(size: int) -> None:
    """One heavy entry at either end, two blocks' worth of energy, all equal, and the worst of them: signs of a row of another rotation.

    Each of 40 seeds' rotations of 6 vectors passes with a chance of at most 1e-8: false alarm 4e-7.
    """
    rng, bound, squared = np.random.default_rng(0), 16 * size**0.5, 256 * size
    half = np.r_[np.ones(size // 2), np.zeros(size - size // 2)]
    row = np.sign(Rotation(bytes(16), size).forward(np.eye(size)[:1])[0] + 1e-300)
    hard = np.array([np.eye(size)[0], np.eye(size)[-1], half, half[::-1], np.ones(size), row])
    hard *= bound / np.linalg.norm(hard, axis=1)[:, None]
    reach = signal_reach(size, squared, len(hard), rotated=True, chance=1e-8)
    entry = reach / len(hard)
    largest = max(np.abs(Rotation(rng.bytes(16), size).forward(hard)).max() for _ in range(40))
    assert largest <= entry - 1
    assert entry < 16 * size**0.5 / 2


def test_a_sum_of_rounded_rotated_updates_stays_within_the_reach() -> None:
    """Clients that all send the same, clipped: the largest sums there can be. False alarm: 1e-9."""
    size, clients = 1500, 20
    grid = Grid(bound=1.0, params=size)
    updates = np.tile(np.random.default_rng(3).normal(size=size) ** 5, (clients, 1))
    rotated = Rotation(SEED, size).forward(updates)
    rounded = to_grid(rotated, grid, np.random.default_rng(4), np.random.default_rng)
    reach = signal_reach(size, grid.sensitivity_squared, clients, rotated=True, chance=1e-9)
    plain = to_grid(updates, grid, np.random.default_rng(4), np.random.default_rng)
    assert np.abs(rounded.sum(axis=0)).max() <= reach < np.abs(plain.sum(axis=0)).max()
    assert np.abs(plain.sum(axis=0)).max() <= signal_reach(size, grid.sensitivity_squared, clients, rotated=False, chance=1e-9)


@given(st.integers(1, 10**7), st.integers(1, 10**10), st.integers(1, 1000), st.floats(1e-15, 0.5))
def test_without_rotation_the_reach_is_certain_and_with_it_no_larger(size: int, squared: int, clients: int, chance: float) -> None:
    certain = signal_reach(size, squared, clients, rotated=False, chance=chance)
    assert certain == clients * math.isqrt(squared)
    rotated = signal_reach(size, squared, clients, rotated=True, chance=chance)
    assert rotated <= certain
    assert rotated <= signal_reach(size, squared, clients, rotated=True, chance=chance / 10)


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_a_ring_is_the_least_that_tells_every_sum_from_every_other(signal: int, noise: int) -> None:
    values = 2 * (signal + noise) + 1
    if values >= 2**32:
        with pytest.raises(InvalidPrivacy, match="accepted: at most 2147483647"):
            ring_bits(signal, noise)
        return
    bits = ring_bits(signal, noise)
    assert 2**bits > values
    assert bits == 16 or 2 ** (bits - 1) <= values


@pytest.mark.parametrize(("reach", "bits"), [(0, 16), (32_767, 16), (32_768, 17), (2**31 - 1, 32)])
def test_the_edges_of_rings(reach: int, bits: int) -> None:
    assert ring_bits(reach, 0) == ring_bits(0, reach) == bits


@given(st.integers(1, 10**6), st.integers(1, 300), st.integers(0, 10**6))
def test_it_pays_exactly_where_a_vector_takes_fewer_bits(size: int, clients: int, noise: int) -> None:
    squared = Grid(1.0, size).sensitivity_squared
    rotated = ring_bits(signal_reach(size, squared, clients, rotated=True, chance=1e-9), noise)
    plain = ring_bits(signal_reach(size, squared, clients, rotated=False, chance=1e-9), noise)
    assert rotation_pays(size, squared, clients, noise, chance=1e-9) == (rotated * size < plain * size)


def test_it_saves_two_bits_of_a_hundred_thousand_parameters_and_nothing_where_noise_outgrows_the_signal() -> None:
    noise = noise_reach("discrete-gaussian", 10**6, 50, 100_000, 1e-9)
    assert ring_bits(signal_reach(100_000, GRID, 50, rotated=False, chance=1e-9), noise) == 20
    assert ring_bits(signal_reach(100_000, GRID, 50, rotated=True, chance=1e-9), noise) == 18
    assert rotation_pays(100_000, GRID, 50, noise, chance=1e-9)
    assert not rotation_pays(100_000, GRID, 2, 100_000, chance=1e-9)


def test_it_pays_where_only_a_rotated_sum_fits_any_ring() -> None:
    squared = Grid(1.0, 10**8).sensitivity_squared
    with pytest.raises(InvalidPrivacy, match="32 bits"):
        ring_bits(signal_reach(10**8, squared, 20_000, rotated=False, chance=1e-9), 0)
    assert rotation_pays(10**8, squared, 20_000, 0, chance=1e-9)
    with pytest.raises(InvalidPrivacy, match="32 bits"):
        rotation_pays(10**8, squared, 20_000, 2**31, chance=1e-9)


@pytest.mark.parametrize("shape", [(300,), (2, 299), (1, 2, 300)])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"expected \[clients, 300\]"):
        Rotation(SEED, 300).forward(np.zeros(shape))


@pytest.mark.parametrize("shape", [(299,), (1, 300)])
def test_a_sum_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"expected \[300\]"):
        Rotation(SEED, 300).backward(np.zeros(shape))


def test_a_short_seed_or_no_dimension_is_refused() -> None:
    with pytest.raises(InvalidPrivacy, match="15 bytes; accepted: at least 16"):
        Rotation(bytes(15), 3)
    with pytest.raises(InvalidPrivacy, match="at least one dimension"):
        Rotation(SEED, 0)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"dimensions": 0}, "dimensions is 0"),
        ({"sensitivity_squared": 2.5}, "sensitivity_squared is 2.5"),
        ({"clients": -1}, "clients is -1"),
        ({"chance": 0.0}, "chance is 0.0"),
    ],
)
def test_a_reach_of_what_cannot_be_is_refused(changed: dict[str, float], match: str) -> None:
    with pytest.raises(InvalidPrivacy, match=match):
        signal_reach(**({"dimensions": 3, "sensitivity_squared": 9, "clients": 2, "rotated": True, "chance": 1e-9} | changed))
