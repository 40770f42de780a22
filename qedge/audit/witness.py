"""The witness: the highest head of the audit log and of the ledger that was ever seen, signed, beside the keys.

A hash chain shows that nothing in it was altered; it cannot show that its end was cut off or an old copy put back. The log
and the ledger name each other's heads, and the witness names both, so that putting back any of the three, or any two, is
noticed. All three put back together are noticed only by a head kept elsewhere: a receipt, a tag in the model registry.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from qedge.audit.canonical import canonical, parse
from qedge.errors import LogTampered
from qedge.security.keys import Keys
from qedge.storage import storage_errors, write_atomically

_DOMAIN = "witness"
_SECTOR_BYTES = 512


@dataclass(frozen=True)
class Head:
    """The end of a hash chain. seq: entries so far; hash: of the last one, 64 hex digits."""

    seq: int
    hash: str

    def plain(self) -> dict[str, JsonValue]:
        """As JSON values that `Head.read` reads back."""
        return {"seq": self.seq, "hash": self.hash}

    @classmethod
    def read(cls, value: JsonValue) -> Head:
        """A head from JSON values.

        Raises:
            ValueError: not a head.
        """
        if not isinstance(value, dict) or set(value) != {"seq", "hash"}:
            raise ValueError("a head has seq and hash")
        seq, hashed = value["seq"], value["hash"]
        if not isinstance(seq, int) or not isinstance(hashed, str):
            raise ValueError("a head has a whole number and a hash in hex")
        return cls(seq, hashed)


GENESIS = Head(0, "0" * 64)


@dataclass(frozen=True)
class Witness:
    """The heads that were seen."""

    log: Head
    ledger: Head

    @classmethod
    def read(cls, home: Path, keys: Keys) -> Witness | None:
        """The witness of a home, or None when it has none.

        Raises:
            LogTampered: it was altered, or signed with another key.
        """
        path = _path(home)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            value = parse(content.rstrip())
            if not isinstance(value, dict):
                raise ValueError("not an object")
            witness = cls(Head.read(value["log"]), Head.read(value["ledger"]))
            signature = bytes.fromhex(str(value["signature"]))
        except (ValueError, KeyError) as error:
            raise LogTampered(f"the witness {path} was altered: {error}", path=str(path)) from None
        if content != witness._render(signature) or not keys.verify(_DOMAIN, witness._signed(), signature):
            raise LogTampered(f"the witness {path} was altered, or signed with another key than {keys.key_id}", path=str(path))
        return witness

    def create(self, home: Path, keys: Keys) -> None:
        """The first witness of a home.

        Raises:
            StorageFull, HomeUnusable: it cannot be written.
        """
        write_atomically(_path(home), self._render(keys.sign(_DOMAIN, self._signed())))

    def update(self, home: Path, keys: Keys) -> None:
        """Replace the witness of a home, in place: one sector of the disk, old or new and never a part.

        It is not flushed: what it names already is, and after a power cut an older witness is no false alarm.

        Raises:
            StorageFull, HomeUnusable: it cannot be written.
        """
        path = _path(home)
        with storage_errors(path):
            file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.pwrite(file, self._render(keys.sign(_DOMAIN, self._signed())), 0)
            finally:
                os.close(file)

    def _signed(self) -> bytes:
        return canonical({"log": self.log.plain(), "ledger": self.ledger.plain()})

    def _render(self, signature: bytes) -> bytes:
        text = canonical({"log": self.log.plain(), "ledger": self.ledger.plain(), "signature": signature.hex()})
        return text.ljust(_SECTOR_BYTES - 1) + b"\n"


def _path(home: Path) -> Path:
    return home / "keys" / "heads.json"
