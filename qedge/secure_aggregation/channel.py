"""Sealed channels between clients: HPKE (RFC 9180) with X25519 and ML-KEM-768 together, AES-256-GCM.

Whoever records what is sent can open it only by breaking both. A sealed message is bound to its session, its sender and its receiver:
opened as anything else it does not open. Base mode does not say who sealed it: the sender's signature does that (`client`).
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite

from qedge.errors import MessageRefused

KEY_BYTES, OVERHEAD_BYTES = 1184 + 32, 1120 + 16
_PROBE = X25519PrivateKey.from_private_bytes(bytes(32))  # its exchange with a point of small order fails, as that of any other key
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class ChannelKey:
    """A client's key of one session, which others seal to."""

    def __init__(self) -> None:
        lattice, curve = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        self._private = MLKEM768X25519PrivateKey(lattice, curve)
        self.public: bytes = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()

    def open(self, sealed: bytes, session: bytes, sender: int, receiver: int) -> bytes:
        """What was sealed.

        Raises:
            MessageRefused: it was sealed to another key, in another session, by or for somebody else, or was altered.
        """
        try:
            return _SUITE.decrypt(sealed, self._private, info=_info(session, sender, receiver))
        except (InvalidTag, ValueError):
            raise MessageRefused(f"what member {sender} sealed for {receiver} does not open", sender=sender) from None


def seal(message: bytes, public: bytes, session: bytes, sender: int, receiver: int) -> bytes:
    """A message that only the holder of the private half of `public` can open, `OVERHEAD_BYTES` longer.

    Raises:
        MessageRefused: `public` is no key.
    """
    try:
        return _SUITE.encrypt(message, public_key(public), info=_info(session, sender, receiver))
    except ValueError:
        raise MessageRefused(f"the channel key of member {receiver} is none", receiver=receiver) from None


def public_key(public: bytes) -> MLKEM768X25519PublicKey:
    """The key to seal to.

    Raises:
        ValueError: these bytes are no key.
    """
    lattice, curve = MLKEM768PublicKey.from_public_bytes(public[:1184]), X25519PublicKey.from_public_bytes(public[1184:])
    return MLKEM768X25519PublicKey(lattice, curve)


def refuse_useless(public: bytes, member: int) -> None:
    """Refuse a key that nobody could seal to: one member that brings one would stop all the others.

    Raises:
        MessageRefused: these bytes are no key, or the point on the curve is of small order.
    """
    try:
        public_key(public)
        _PROBE.exchange(X25519PublicKey.from_public_bytes(public[1184:]))
    except ValueError:
        raise MessageRefused(f"the channel key of member {member} is none", sender=member) from None


def _info(session: bytes, sender: int, receiver: int) -> bytes:
    return b"qedge/secure-aggregation/1 shares\0" + session + sender.to_bytes(4, "big") + receiver.to_bytes(4, "big")
