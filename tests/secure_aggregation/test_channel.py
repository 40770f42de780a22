"""What is sealed opens for its receiver, in its session and from its sender only, and needs both halves of the key."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import MessageRefused
from qedge.secure_aggregation.channel import KEY_BYTES, OVERHEAD_BYTES, ChannelKey, public_key, refuse_useless, seal

SESSION = bytes(range(32))


@settings(max_examples=30)
@given(message=st.binary(max_size=200), sender=st.integers(0, 99), receiver=st.integers(0, 99))
def test_what_is_sealed_opens_as_long_as_it_was_and_never_looks_the_same_twice(message: bytes, sender: int, receiver: int):
    key = ChannelKey()
    one, other = (seal(message, key.public, SESSION, sender, receiver) for _ in range(2))
    assert len(key.public) == KEY_BYTES
    assert len(one) == len(message) + OVERHEAD_BYTES
    assert one != other
    assert key.open(one, SESSION, sender, receiver) == key.open(other, SESSION, sender, receiver) == message


@pytest.mark.parametrize(("session", "sender", "receiver"), [(bytes(32), 1, 2), (SESSION, 3, 2), (SESSION, 1, 3), (SESSION, 2, 1)])
def test_it_does_not_open_as_anything_else(session: bytes, sender: int, receiver: int):
    key = ChannelKey()
    sealed = seal(b"shares", key.public, SESSION, 1, 2)
    with pytest.raises(MessageRefused, match=f"what member {sender} sealed for {receiver} does not open"):
        key.open(sealed, session, sender, receiver)


@settings(max_examples=40)
@given(data=st.data())
def test_what_was_altered_or_cut_does_not_open(data: st.DataObject):
    key = ChannelKey()
    sealed = bytearray(seal(b"shares", key.public, SESSION, 1, 2))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    altered = bytes(sealed[: bit // 8]) + bytes([sealed[bit // 8] ^ 1 << bit % 8]) + bytes(sealed[bit // 8 + 1 :])
    for content in (altered, bytes(sealed[: bit // 8]), b""):
        with pytest.raises(MessageRefused, match="does not open"):
            key.open(content, SESSION, 1, 2)


def test_neither_half_of_a_key_opens_alone():
    """With one half right and the other one made up it does not open: whoever breaks one of the two has nothing."""
    lattice, curve = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
    whole, half, other_half = ChannelKey(), ChannelKey(), ChannelKey()
    whole._private = MLKEM768X25519PrivateKey(lattice, curve)
    half._private = MLKEM768X25519PrivateKey(lattice, X25519PrivateKey.generate())
    other_half._private = MLKEM768X25519PrivateKey(MLKEM768PrivateKey.generate(), curve)
    public = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
    sealed = seal(b"shares", public, SESSION, 1, 2)
    assert whole.open(sealed, SESSION, 1, 2) == b"shares"
    for key in (half, other_half):
        with pytest.raises(MessageRefused):
            key.open(sealed, SESSION, 1, 2)


@pytest.mark.parametrize("size", [0, 32, KEY_BYTES - 1, KEY_BYTES + 1])
def test_what_is_no_key_is_refused(size: int):
    with pytest.raises(ValueError, match=r"."):
        public_key(bytes(size))
    with pytest.raises(MessageRefused, match="the channel key of member 2 is none"):
        seal(b"", bytes(size), SESSION, 1, 2)
    with pytest.raises(MessageRefused, match="the channel key of member 2 is none"):
        refuse_useless(bytes(size), 2)


@pytest.mark.parametrize("point", [0, 1, 2**255 - 19 - 1, 2**255 - 19], ids=["0", "1", "-1", "p"])
def test_a_point_of_small_order_is_refused_and_a_true_key_is_not(point: int):
    """RFC 7748, section 6.1."""
    public = ChannelKey().public
    refuse_useless(public, 2)
    with pytest.raises(MessageRefused, match="the channel key of member 2 is none"):
        refuse_useless(public[:1184] + point.to_bytes(32, "little"), 2)
