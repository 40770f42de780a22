"""Any threshold of shares give the secret; fewer are those of every other secret just as well."""

from __future__ import annotations

import os

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.secure_aggregation.sharing import PRIME, SHARE_BYTES, Interpolation, split

SECRETS = st.binary(min_size=32, max_size=32) | st.sampled_from([bytes(32), b"\xff" * 32, b"\0" * 31 + b"\1"])


def polynomial(points: dict[int, int]) -> list[int]:
    """The coefficients, constant first, of the one polynomial through these points: Gauss's elimination modulo the prime."""
    rows = [[pow(at, power, PRIME) for power in range(len(points))] + [value] for at, value in points.items()]
    for column in range(len(rows)):
        pivot = next(row for row in range(column, len(rows)) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], -1, PRIME)
        rows[column] = [value * inverse % PRIME for value in rows[column]]
        for row in range(len(rows)):
            if row != column:
                by = rows[row][column]
                rows[row] = [(value - by * pivotal) % PRIME for value, pivotal in zip(rows[row], rows[column], strict=True)]
    return [row[-1] for row in rows]


def test_the_modulus_is_the_least_prime_above_all_secrets():
    assert sympy.nextprime(2**256) == PRIME
    assert (PRIME - 1).bit_length() <= 8 * SHARE_BYTES


@settings(max_examples=60)
@given(secret=SECRETS, data=st.data(), members=st.integers(1, 12))
def test_any_threshold_of_shares_give_the_secret(secret: bytes, data: st.DataObject, members: int):
    places = sorted(data.draw(st.sets(st.integers(0, 300), min_size=members, max_size=members)))
    threshold = data.draw(st.integers(1, members))
    shares = dict(zip(places, split(secret, threshold, places, os.urandom), strict=True))
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}
    some = data.draw(st.permutations(places))[:threshold]
    assert Interpolation(some).secret(shares) == secret


@settings(max_examples=60)
@given(secret=SECRETS, other=SECRETS, threshold=st.integers(2, 6))
def test_one_share_too_few_is_consistent_with_every_secret(secret: bytes, other: bytes, threshold: int):
    """For the shares of one secret and any other there is exactly one draw with which that one has them too; all draws are alike."""
    places = list(range(threshold - 1))
    shares = split(secret, threshold, places, os.urandom)
    points = {place + 1: int.from_bytes(share, "big") for place, share in zip(places, shares, strict=True)}
    constant, *drawn = polynomial({0: int.from_bytes(other, "big"), **points})
    assert constant == int.from_bytes(other, "big")
    wide = SHARE_BYTES + 16
    content = b"".join(coefficient.to_bytes(wide, "big") for coefficient in reversed(drawn))
    assert split(other, threshold, places, lambda size: content[:size]) == shares


def test_a_draw_is_wide_enough_to_be_uniform():
    """Reduced modulo the prime it is off by less than 2^-128 in total variation."""
    asked: list[int] = []
    split(bytes(32), 3, [0, 1, 2], lambda size: asked.append(size) or bytes(size))
    assert asked == [2 * (SHARE_BYTES + 16)]
    assert 2 ** (8 * asked[0] // 2) > PRIME * 2**128


@given(wrong=st.integers(1, 2**256))
def test_a_false_share_gives_another_secret_or_none(wrong: int):
    shares = dict(enumerate(split(b"\7" * 32, 3, range(3), os.urandom)))
    value = (int.from_bytes(shares[1], "big") + wrong) % PRIME
    assert Interpolation(range(3)).secret({**shares, 1: value.to_bytes(SHARE_BYTES, "big")}) != b"\7" * 32


@pytest.mark.parametrize("value", [2**256, 2**256 + 296])
def test_what_is_no_secret_of_32_bytes_gives_none(value: int):
    assert Interpolation([0]).secret({0: value.to_bytes(SHARE_BYTES, "big")}) is None
