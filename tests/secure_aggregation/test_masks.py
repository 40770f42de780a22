"""A mask is the AES-256 key stream from counter zero on, whatever its length, and what was added comes off again."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.secure_aggregation.masks import add_masks, add_masks_beside
from qedge.secure_aggregation.ring import Ring

RINGS = st.sampled_from([16, 19, 32, 64]).map(Ring)
LENGTHS = st.integers(0, 50) | st.sampled_from([8191, 8192, 8193, 16384, 32767, 32768, 32769, 70_001])  # about blocks of 65,536 bytes


def key_stream(key: bytes, counter: int, size: int) -> bytes:
    """Computed otherwise: each block is the counter, enciphered."""
    blocks = b"".join(((counter + place) % 2**128).to_bytes(16, "big") for place in range(-(-size // 16)))
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)[:size]


def seed(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def test_the_other_computation_is_that_of_the_published_vector():
    """NIST SP 800-38A, F.5.5, CTR-AES256.Encrypt."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c52b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    stream = key_stream(key, 0xF0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF, 64)
    assert bytes(one ^ other for one, other in zip(plain, stream, strict=True)) == cipher


@settings(max_examples=60)
@given(ring=RINGS, length=LENGTHS)
def test_a_mask_is_the_key_stream_of_its_seed(ring: Ring, length: int):
    total = np.zeros(length, ring.dtype)
    add_masks(total, ring, [(seed(1), 1)])
    assert total.tobytes() == key_stream(seed(1), 0, total.nbytes)


@settings(max_examples=40)
@given(ring=RINGS, length=LENGTHS, plus=st.integers(0, 5), minus=st.integers(0, 5), threads=st.integers(1, 4))
def test_many_masks_are_the_sum_of_each_with_its_sign_on_any_number_of_threads(
    ring: Ring, length: int, plus: int, minus: int, threads: int
):
    seeds = [(seed(number), 1 if number < plus else -1) for number in range(plus + minus)]
    expected = np.arange(length).astype(ring.dtype)
    for one, sign in seeds:
        mask = np.frombuffer(key_stream(one, 0, expected.nbytes), ring.dtype)
        expected = expected + mask if sign > 0 else expected - mask
    together, beside = (np.arange(length).astype(ring.dtype) for _ in range(2))
    add_masks(together, ring, seeds)
    add_masks_beside(beside, ring, seeds, threads)
    assert (together == expected).all()
    assert (beside == expected).all()


@pytest.mark.parametrize("count", [63, 64, 65, 129])
def test_more_masks_than_go_through_the_cache_together_come_off_again(count: int):
    ring, vector = Ring(24), np.arange(1000)
    total = ring.elements(vector)
    add_masks(total, ring, [(seed(number), 1) for number in range(count)])
    assert (ring.centred(total) != vector).any()
    add_masks(total, ring, [(seed(number), -1) for number in reversed(range(count))])
    assert (ring.centred(total) == vector).all()
