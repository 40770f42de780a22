"""The keys, the audit log and the ledger of one home, opened together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qedge.audit.log import AuditLog
from qedge.config import ensure_home
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
