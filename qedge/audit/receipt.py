"""The privacy receipt of a model version: what was trained on, what it cost, what is guaranteed and what is not.

Canonical JSON, every number that is not an integer a decimal string, signed with Ed25519 under its own domain. The id is the
digest of all that is signed. It names the digest of every artifact, the heads of the ledger and of the log at that moment,
and the receipt of the model it was derived from. It never changes; an audit is another document that names it.

A signature proves something only under a key that was pinned outside: under the key that a receipt brings along it proves
that nothing was altered since whoever made it signed, and `Verified.pinned` says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from qedge.audit.canonical import canonical, digest, parse
from qedge.errors import ArtifactTampered, ReceiptTampered
from qedge.security.keys import Keys, key_id
from qedge.security.keys import verify as verify_signature
from qedge.storage import storage_errors, write_atomically

SCHEMA = "qedge.receipt/1"
FILE = "receipt.json"
NO_GUARANTEE = "no privacy guarantee"
_EXCEPT = ", except for what is NOT COVERED: "
_DOMAIN = "receipt"

Decimal = Annotated[str, Field(pattern=r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]+)?$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Adversary = Literal["released model", "roster holder", "server", "colluding participants"]
Covered = Literal["public by declaration", "charged", "local", "NOT COVERED"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Data(_Part):
    """Whose data, without any of them. fingerprint: keyed, only the silo can compare it."""

    source: str
    scope: str | None = None
    unit: str
    relation: str
    clients: int = Field(ge=1, description="N, public")
    fingerprint: Sha256
    labels: str = Field(description="where the label set comes from: declared, public by the data set, or found in the data")


class Share(_Part):
    """What each client of a secure sum adds. variance: of one share, in grid units squared; counted: shares that the guarantee counts on.

    group: members of the group with the fewest such shares, with its threshold and the colluders that it stands.
    """

    distribution: str
    variance: int = Field(ge=1)
    counted: int = Field(ge=1)
    group: int = Field(ge=3)
    threshold: int = Field(ge=1)
    colluders: int = Field(ge=0)
    server: str


class Mechanism(_Part):
    """The noise that was added, in grid units except `clipping_bound` and `grid_step`; with a bound that follows a quantile, its first.

    With DP-SGD at the clients, that of every local step: sampling and rate are of a client's examples.
    """

    name: str
    clipping_bound: Decimal
    grid_step: Decimal
    sensitivity_squared: int = Field(ge=1)
    variance: int = Field(ge=1)
    noise_multiplier: Decimal
    sampling: str
    rate: Decimal
    rounds: int = Field(ge=0)
    total_variation: Decimal = Field(description="distance of the sampled noise from the exact distribution, all rounds; part of delta")
    count_weight: int = Field(default=0, ge=0, description="with a bound that follows a quantile: what a client adds to its noisy count")
    strategy: tuple[int, ...] = Field(default=(), description="with noise that is correlated over rounds: the band of its matrix")
    share: Share | None = Field(default=None, description="with noise that clients add: each one's part; `variance` is what is counted on")
    steps: int = Field(default=0, ge=0, description="with DP-SGD at the clients: local steps a round, each released by itself")
    max_rows: int = Field(default=0, ge=0, description="with DP-SGD at the clients: rows of a client that are drawn from, at most")


class Accountant(_Part):
    """How the cost was counted. order: the one frozen with the scope, at which the guarantee was converted."""

    name: str
    orders: tuple[int, ...]
    order: int


class Guarantee(_Part):
    """(epsilon, delta) against one adversary."""

    adversary: Adversary
    epsilon: Decimal
    delta: Decimal
    how: str


class Use(_Part):
    """One use of private rows, and what covers it."""

    what: str
    covered: Covered
    note: str = ""


class HeadOf(_Part):
    """The end of a hash chain when the receipt was made."""

    seq: int = Field(ge=0)
    hash: Sha256


class Body(_Part):
    """What a receipt says."""

    model: str
    run: str
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$", description="UTC")
    code_version: str
    job: Sha256
    artifacts: dict[FileName, Sha256] = Field(min_length=1)
    data: Data
    privacy: str = Field(description="the guarantee in one sentence; without a mechanism: no privacy guarantee")
    mechanism: Mechanism | None = None
    accountant: Accountant | None = None
    guarantees: tuple[Guarantee, ...] = ()
    epsilon_at_1e_5: Decimal | None = Field(
        default=None, description="of the released model at delta 1e-5, for comparison; not what is charged"
    )
    uses: tuple[Use, ...] = Field(min_length=1)
    trust_model: str
    ledger: HeadOf
    log: HeadOf
    parent: Sha256 | None = None

    @model_validator(mode="after")
    def _claims_what_it_can(self) -> Body:
        private = self.mechanism is not None
        if private != (self.accountant is not None) or private != bool(self.guarantees):
            raise ValueError("a mechanism, an accountant and guarantees come together or not at all")
        if private != (self.privacy != NO_GUARANTEE) or (self.epsilon_at_1e_5 is not None and not private):
            raise ValueError(f"'privacy' is '{NO_GUARANTEE}' when there is no mechanism, and only then; then there is no epsilon either")
        if FILE in self.artifacts:
            raise ValueError("a receipt cannot name its own digest")
        return self


class Receipt(Body):
    """A signed body. id: SHA-256 of everything but id and signature; key_id: of the signing key; public_key: hex."""

    schema_: Literal["qedge.receipt/1"] = Field(default="qedge.receipt/1", alias="schema")
    key_id: str
    public_key: Sha256
    id: Sha256
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @classmethod
    def read(cls, path: Path) -> Receipt:
        """A receipt from its file, which must be byte for byte as it was written. Says nothing yet about who signed: `verify`.

        Raises:
            ReceiptTampered: not a receipt in canonical form, or of an unknown schema.
            HomeUnusable: it cannot be read.
        """
        with storage_errors(path):
            content = path.read_bytes()
        return cls.parse(content, where=str(path))

    @classmethod
    def parse(cls, content: bytes, *, where: str = "receipt") -> Receipt:
        """A receipt from its bytes; as `read`."""
        try:
            if content[-1:] != b"\n":
                raise ValueError("its last line is not whole")
            value = parse(content[:-1])
            if isinstance(value, dict) and value.get("schema") != SCHEMA:
                raise ReceiptTampered(f"{where}: schema {value.get('schema')!r} is unknown; accepted: {SCHEMA}", path=where)
            receipt = cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ReceiptTampered(f"{where} is not a receipt: {'.'.join(map(str, first['loc']))}: {first['msg']}", path=where) from None
        except ValueError as error:
            raise ReceiptTampered(f"{where} is not a receipt: {error}", path=where) from None
        if receipt.content() != content:
            raise ReceiptTampered(f"{where} is not a receipt in its canonical form", path=where)
        return receipt

    def write(self, path: Path) -> None:
        """Put it in a file, whole or not at all.

        Raises:
            StorageFull, HomeUnusable: it cannot be written.
        """
        write_atomically(path, self.content(), mode=0o644)

    def content(self) -> bytes:
        """The bytes of its file."""
        return canonical(self.plain()) + b"\n"

    def plain(self) -> dict[str, JsonValue]:
        """As JSON values."""
        values: dict[str, JsonValue] = self.model_dump(mode="json", by_alias=True)
        return values

    def signed(self) -> dict[str, JsonValue]:
        """All that the id and the signature are over."""
        return {name: value for name, value in self.plain().items() if name not in ("id", "signature")}


@dataclass(frozen=True)
class Verified:
    """What a verification showed. pinned: under a key that the caller brought; unlisted: files the receipt says nothing about."""

    id: str
    key_id: str
    pinned: bool
    artifacts: tuple[str, ...]
    unlisted: tuple[str, ...]


def excepting(guarantee: str, uses: Iterable[Use]) -> str:
    """The guarantee in one sentence, and what it does not hold for: uses that are NOT COVERED."""
    sentence = guarantee.partition(_EXCEPT)[0]
    left_out = ", ".join(use.what for use in uses if use.covered == "NOT COVERED")
    return f"{sentence}{_EXCEPT}{left_out}" if left_out and sentence != NO_GUARANTEE else sentence


def issue(body: Body, keys: Keys) -> Receipt:
    """Sign what a receipt says."""
    said = body.model_dump(mode="json") | {"schema": SCHEMA, "key_id": keys.key_id, "public_key": keys.public.hex()}
    signature = keys.sign(_DOMAIN, canonical(said))
    return Receipt.parse(canonical(said | {"id": digest(said), "signature": signature.hex()}) + b"\n")


def verify(receipt: Receipt, public: bytes | None = None, folder: Path | None = None) -> Verified:
    """Verify the signature, under `public` when given, and every artifact in `folder` when given.

    Raises:
        ReceiptTampered: the id or the signature does not hold, or another key than `public` signed.
        ArtifactTampered: a file is missing or does not match its digest.
        HomeUnusable: a file cannot be read.
    """
    embedded = bytes.fromhex(receipt.public_key)
    if public is not None and public != embedded:
        raise ReceiptTampered(
            f"receipt {receipt.id[:16]} was signed with key {key_id(embedded)}, not with the pinned {key_id(public)}", id=receipt.id
        )
    said = receipt.signed()
    if receipt.key_id != key_id(embedded) or receipt.id != digest(said):
        raise ReceiptTampered(f"receipt {receipt.id[:16]}: its id or key id is not its own", id=receipt.id)
    if not verify_signature(_DOMAIN, canonical(said), bytes.fromhex(receipt.signature), embedded):
        raise ReceiptTampered(f"receipt {receipt.id[:16]}: its signature does not hold", id=receipt.id)
    unlisted = _check_artifacts(receipt, folder) if folder is not None else ()
    return Verified(receipt.id, receipt.key_id, public is not None, tuple(sorted(receipt.artifacts)) if folder else (), unlisted)


def artifact_digests(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of these files, as `Body.artifacts`.

    Raises:
        HomeUnusable: one cannot be read.
    """
    return {name: _digest_of(folder / name) for name in names}


def _check_artifacts(receipt: Receipt, folder: Path) -> tuple[str, ...]:
    for name, expected in sorted(receipt.artifacts.items()):
        path = folder / name
        if not path.is_file():
            raise ArtifactTampered(f"{path} is on receipt {receipt.id[:16]} and is missing", path=str(path))
        if _digest_of(path) != expected:
            raise ArtifactTampered(f"{path} does not match its digest on receipt {receipt.id[:16]}", path=str(path))
    return tuple(sorted(path.name for path in folder.iterdir() if path.name not in {*receipt.artifacts, FILE}))


def _digest_of(path: Path) -> str:
    with storage_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
