"""The receipt of something trained in one place, by rows that no guarantee is given for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from qedge import __version__
from qedge.audit import receipt
from qedge.audit.canonical import digest
from qedge.data.labelled import Labelled
from qedge.federated.run_folder import data_digest
from qedge.records import Records


def issue_plain(
    model: str,
    run: str,
    asked: dict[str, JsonValue],
    source: str,
    table: Labelled,
    uses: Sequence[receipt.Use],
    trust_model: str,
    artifacts: dict[str, str],
    records: Records,
) -> receipt.Receipt:
    """Signed by the home's key. asked: what was to be done; source: the table's; uses: of its rows; artifacts: digests, by file."""
    prints = frozenset(records.keys.mac("fingerprint", message).hex() for message in table.identity)
    ledger, log = records.ledger.head(), records.log.head()
    body = receipt.Body(
        model=model,
        run=run,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        code_version=__version__,
        job=digest({"job": repr(asked)}),
        artifacts=artifacts,
        data=receipt.Data(
            source=Path(source).name,
            unit="example",
            relation="zero-out",
            clients=len(table.labels),
            fingerprint=data_digest(prints, records.keys),
            labels="found in the data",
        ),
        privacy=receipt.NO_GUARANTEE,
        uses=tuple(uses),
        trust_model=trust_model,
        ledger=receipt.HeadOf(seq=ledger.seq, hash=ledger.hash),
        log=receipt.HeadOf(seq=log.seq, hash=log.hash),
    )
    return receipt.issue(body, records.keys)
