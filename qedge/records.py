"""The keys, the audit log and the ledger of one home, opened together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from qedge import __version__
from qedge.audit import receipt
from qedge.audit.log import AuditLog
from qedge.audit.receipt import Receipt
from qedge.audit.witness import Head
from qedge.config import ensure_home
from qedge.errors import RolledBack
from qedge.privacy.ledger import Ledger
from qedge.security.keys import Keys


@dataclass(frozen=True)
class Records:
    """What a home keeps that nobody may alter unnoticed."""

    home: Path
    keys: Keys
    log: AuditLog
    ledger: Ledger

    @classmethod
    def open(cls, home: Path) -> Records:
        """Open what is there, or make it; the ledger is verified on the way.

        Raises:
            HomeUnusable: the home cannot be written; LedgerTampered, LogTampered, RolledBack: it is not what it was.
        """
        keys = Keys.open(ensure_home(home))
        log = AuditLog(home, keys)
        return cls(home, keys, log, Ledger.open(home, keys, log))

    def refuse_older_than_receipts(self) -> None:
        """Refuse a ledger or a log that is older than what a receipt of this home has seen, though all three were put back together.

        Raises:
            RolledBack: a receipt that this home signed carries a head that is not in the past of the ledger, or of the log.
        """
        for path in sorted((self.home / "runs").glob("[!.]*/model/receipt.json")):
            receipt = Receipt.read(path)
            if receipt.public_key != self.keys.public.hex():
                continue
            self.ledger.refuse_older_than(Head(receipt.ledger.seq, receipt.ledger.hash))
            if not self.log.contains(Head(receipt.log.seq, receipt.log.hash)):
                raise RolledBack(
                    f"{self.log.path} does not contain entry {receipt.log.seq}, which {path} has seen", path=str(self.log.path)
                )


def derive(parent: Receipt, uses: Sequence[receipt.Use], artifacts: dict[str, str], records: Records, *, run: str | None = None) -> Receipt:
    """The receipt of something made from what another is about: the parent's guarantee, its uses of rows and these.

    run: in which it was made; default: the parent's.
    """
    ledger, log = records.ledger.head(), records.log.head()
    said = parent.model_dump(mode="python", include=set(receipt.Body.model_fields)) | {
        "artifacts": artifacts,
        "parent": parent.id,
        "run": run or parent.run,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "code_version": __version__,
        "ledger": receipt.HeadOf(seq=ledger.seq, hash=ledger.hash),
        "log": receipt.HeadOf(seq=log.seq, hash=log.hash),
        "uses": (*parent.uses, *uses),
        "privacy": receipt.excepting(parent.privacy, (*parent.uses, *uses)),
    }
    return receipt.issue(receipt.Body.model_validate(said), records.keys)
