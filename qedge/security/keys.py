"""The two keys of a home: one signs what leaves it, one makes fingerprints that only this silo can compare.

Ed25519 (RFC 8032) signs ledger events, log checkpoints and receipts, each under its own domain, so that a signature made for
one can never be shown as another. HMAC-SHA256 (RFC 2104) with a silo key that never leaves makes fingerprints of data.
Whoever can read `keys/` can forge both: the public key is to be pinned, and heads to be kept, outside.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from qedge.errors import InvalidKey
from qedge.storage import storage_errors, sync_folder, write_beside

_BYTES = 32
_HEX_KEY = re.compile(r"(?:ed25519:)?([0-9a-f]{64})")


class Keys:
    """The keys of one home. Never pickled, never shown: a process that needs them opens the home."""

    def __init__(self, signing: bytes, silo: bytes) -> None:
        """`signing`: raw Ed25519 private key; `silo`: HMAC key; 32 bytes each.

        Raises:
            InvalidKey: another length.
        """
        if len(signing) != _BYTES or len(silo) != _BYTES:
            raise InvalidKey(f"a key has {_BYTES} bytes; given {len(signing)} (signing) and {len(silo)} (silo)")
        self._signing = Ed25519PrivateKey.from_private_bytes(signing)
        self._silo = silo
        self.public: bytes = self._signing.public_key().public_bytes_raw()
        self.key_id: str = key_id(self.public)

    @classmethod
    def open(cls, home: Path) -> Keys:
        """The keys under `home/keys`, made when missing; processes that open at once agree on the same.

        Raises:
            InvalidKey: a key file that group or others may read, or that is not a key.
            HomeUnusable, StorageFull: the folder cannot be written.
        """
        folder = home / "keys"
        with storage_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        silo, signing = folder / "silo.key", folder / "signing.ed25519"
        if signing.exists() and not silo.exists():  # the silo's key is made first
            raise InvalidKey(f"key file {silo} is gone: under a new one all data would look new; put it back", path=str(silo))
        return cls(silo=_open_key(silo), signing=_open_key(signing))

    def sign(self, domain: str, message: bytes) -> bytes:
        """An Ed25519 signature (64 bytes) of `message` under `domain`."""
        return self._signing.sign(_separated(domain, message))

    def verify(self, domain: str, message: bytes, signature: bytes, public: bytes | None = None) -> bool:
        """Whether `signature` is good under `public` (default: this home's own key)."""
        return verify(domain, message, signature, self.public if public is None else public)

    def mac(self, purpose: str, message: bytes) -> bytes:
        """HMAC-SHA256 (32 bytes) of `message` with the silo's key, apart for each purpose."""
        return hmac.digest(self._silo, _separated(purpose, message), "sha256")

    def __repr__(self) -> str:
        return f"Keys({self.key_id})"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("keys are not pickled; open the home where they are needed")


def verify(domain: str, message: bytes, signature: bytes, public: bytes) -> bool:
    """Whether `signature` of `message` under `domain` was made with the private half of `public`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _separated(domain, message))
    except (InvalidSignature, ValueError):
        return False
    return True


def key_id(public: bytes) -> str:
    """A short name for a public key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def public_key(text: str) -> bytes:
    """The pinned public key that a user gives: 64 hex digits, `ed25519:` before them or not.

    Raises:
        InvalidKey: anything else.
    """
    match = _HEX_KEY.fullmatch(text.strip().lower())
    if match is None:
        raise InvalidKey("a pinned key is 64 hex digits, as `ed25519:0123…`; given something else")
    return bytes.fromhex(match[1])


def public_text(public: bytes) -> str:
    """A public key as `public_key` reads it."""
    return f"ed25519:{public.hex()}"


def _separated(domain: str, message: bytes) -> bytes:
    if not domain or "\0" in domain:
        raise ValueError(f"a domain is text without NUL; given {domain!r}")
    return b"qedge/" + domain.encode() + b"\0" + message


def _open_key(path: Path) -> bytes:
    """The key in `path`; when missing, a new one is linked into place whole, and the first to link it wins."""
    if not path.exists():
        temporary = write_beside(path, secrets.token_bytes(_BYTES))
        with storage_errors(path):
            try:
                with contextlib.suppress(FileExistsError):
                    path.hardlink_to(temporary)
            finally:
                temporary.unlink()
            sync_folder(path.parent)
    with storage_errors(path), path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        content = file.read(_BYTES + 1)
    if mode & 0o077:
        raise InvalidKey(f"key file {path} is open to others (mode {mode:03o}); make it 600 and consider the key known", path=str(path))
    if len(content) != _BYTES:
        raise InvalidKey(f"key file {path} is not a key of {_BYTES} bytes; put the right one back", path=str(path))
    return content
