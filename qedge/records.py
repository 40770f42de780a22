"""The keys, the audit log and the ledger of one home, opened together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
