"""The receipt: what it says cannot be changed, and it cannot say what it does not know."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from qedge.audit.canonical import canonical, digest
from qedge.audit.receipt import (
    NO_GUARANTEE,
    Accountant,
    Body,
    Data,
    Guarantee,
    HeadOf,
    Mechanism,
    Receipt,
    Use,
    artifact_digests,
    excepting,
    issue,
    verify,
)
from qedge.errors import ArtifactTampered, HomeUnusable, ReceiptTampered, StorageFull
from qedge.security.keys import Keys

KEYS, OTHER = Keys(bytes(range(32)), bytes(32)), Keys(bytes(32), bytes(32))
FILES = {"model.onnx": b"onnx" * 100, "weights.safetensors": b"weights"}
HASH = "ab" * 32


def body(**changes: object) -> Body:
    plain = {
        "model": "digits",
        "run": "digits-1",
        "created": "2026-01-02T03:04:05Z",
        "code_version": "0.1.0",
        "job": HASH,
        "artifacts": {"model.onnx": HASH},
        "data": Data(source="digits", scope="digits", unit="client", relation="zero-out", clients=400, fingerprint=HASH, labels="declared"),
        "privacy": "(8, 0.001)-differential privacy for each client",
        "mechanism": Mechanism(
            name="discrete Gaussian",
            clipping_bound="0.5",
            grid_step="0.0006",
            sensitivity_squared=160_000,
            variance=250_000,
            noise_multiplier="1.25",
            sampling="poisson",
            rate="0.25",
            rounds=60,
            total_variation="1e-30",
        ),
        "accountant": Accountant(name="RDP at integer orders", orders=(2, 3), order=3),
        "guarantees": (
            Guarantee(adversary="released model", epsilon="7.9", delta="0.001", how="amplified by sampling"),
            Guarantee(adversary="roster holder", epsilon="45.1", delta="0.001", how="no amplification"),
        ),
        "epsilon_at_1e_5": "11.5",
        "uses": (Use(what="training", covered="charged"), Use(what="scaling", covered="NOT COVERED", note="ranges declared by hand")),
        "trust_model": "the coordinator is trusted",
        "ledger": HeadOf(seq=64, hash=HASH),
        "log": HeadOf(seq=65, hash=HASH),
    }
    return Body.model_validate(plain | changes)


WITHOUT = {"privacy": NO_GUARANTEE, "mechanism": None, "accountant": None, "guarantees": (), "epsilon_at_1e_5": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    issue(body(artifacts=artifact_digests(tmp_path, tuple(FILES))), KEYS).write(tmp_path / "receipt.json")
    return tmp_path


def test_a_receipt_reads_back_as_it_was_issued_and_holds(folder: Path) -> None:
    receipt = Receipt.read(folder / "receipt.json")
    assert receipt == issue(body(artifacts=artifact_digests(folder, tuple(FILES))), KEYS)
    found = verify(receipt, KEYS.public, folder)
    assert (found.id, found.key_id, found.pinned) == (receipt.id, KEYS.key_id, True)
    assert (found.artifacts, found.unlisted) == (("model.onnx", "weights.safetensors"), ())


def test_a_key_that_was_not_pinned_is_said_not_to_be(folder: Path) -> None:
    assert not verify(Receipt.read(folder / "receipt.json"), None, folder).pinned


def test_the_file_is_canonical_json_whose_signature_anyone_can_check(folder: Path) -> None:
    content = (folder / "receipt.json").read_bytes()
    values = json.loads(content)
    assert canonical(values) + b"\n" == content
    signature, claimed = bytes.fromhex(values.pop("signature")), values.pop("id")
    assert claimed == digest(values)
    assert KEYS.verify("receipt", canonical(values), signature)
    assert (values["schema"], values["key_id"], values["parent"]) == ("qedge.receipt/1", KEYS.key_id, None)


def test_every_byte_of_the_file_counts(folder: Path) -> None:
    """Whatever one bit is flipped, wherever, and under the embedded key too."""
    content, source = (folder / "receipt.json").read_bytes(), random.Random(0)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << source.randrange(8)
        with pytest.raises(ReceiptTampered):
            verify(Receipt.parse(bytes(changed)))


@settings(deadline=None)
@given(st.data())
def test_no_byte_can_be_set_put_in_or_taken_out(data: st.DataObject) -> None:
    content = issue(body(), KEYS).content()
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start, min(len(content), start + 3)))
    changed = content[:start] + data.draw(st.binary(max_size=3)) + content[end:]
    if changed != content:
        with pytest.raises(ReceiptTampered):
            verify(Receipt.parse(changed))


def test_a_receipt_rewritten_and_signed_by_another_does_not_pass_for_ours(folder: Path) -> None:
    values = json.loads((folder / "receipt.json").read_bytes())
    values["guarantees"][0]["epsilon"] = "0.1"
    for name in ("id", "signature"):
        del values[name]
    half = values | {"id": digest(values), "signature": OTHER.sign("receipt", canonical(values)).hex()}
    with pytest.raises(ReceiptTampered, match="signature does not hold"):
        verify(Receipt.parse(canonical(half) + b"\n"))
    values |= {"key_id": OTHER.key_id, "public_key": OTHER.public.hex()}
    whole = values | {"id": digest(values), "signature": OTHER.sign("receipt", canonical(values)).hex()}
    forged = Receipt.parse(canonical(whole) + b"\n")
    assert not verify(forged).pinned
    with pytest.raises(ReceiptTampered, match=f"not with the pinned {KEYS.key_id}"):
        verify(forged, KEYS.public)


def test_a_receipt_cannot_go_by_the_name_of_another_key() -> None:
    values = json.loads(issue(body(), OTHER).content()) | {"key_id": KEYS.key_id}
    said = {name: value for name, value in values.items() if name not in ("id", "signature")}
    forged = said | {"id": digest(said), "signature": OTHER.sign("receipt", canonical(said)).hex()}
    with pytest.raises(ReceiptTampered, match="key id is not its own"):
        verify(Receipt.parse(canonical(forged) + b"\n"))


@pytest.mark.parametrize("name", ["parent", "epsilon_at_1e_5", "signature", "schema"])
def test_a_receipt_says_everything_even_what_it_has_not(name: str) -> None:
    values = json.loads(issue(body(), KEYS).content())
    del values[name]
    with pytest.raises(ReceiptTampered):
        Receipt.parse(canonical(values) + b"\n")


def test_a_signature_made_for_anything_else_is_no_receipts_signature() -> None:
    values = json.loads(issue(body(), KEYS).content())
    said = {name: value for name, value in values.items() if name not in ("id", "signature")}
    for domain in ("ledger", "audit-log", "witness"):
        values["signature"] = KEYS.sign(domain, canonical(said)).hex()
        with pytest.raises(ReceiptTampered, match="signature"):
            verify(Receipt.parse(canonical(values) + b"\n"))


@pytest.mark.parametrize("name", sorted(FILES))
def test_an_altered_short_or_missing_artifact_is_noticed(folder: Path, name: str) -> None:
    receipt, path = Receipt.read(folder / "receipt.json"), folder / name
    content = path.read_bytes()
    for changed in (bytes([content[0] ^ 1]) + content[1:], content[:-1], content + b"\0", b""):
        path.write_bytes(changed)
        with pytest.raises(ArtifactTampered, match="digest"):
            verify(receipt, KEYS.public, folder)
    path.unlink()
    with pytest.raises(ArtifactTampered, match="missing"):
        verify(receipt, KEYS.public, folder)
    path.mkdir()
    with pytest.raises(ArtifactTampered, match="missing"):
        verify(receipt, KEYS.public, folder)


def test_a_file_that_no_receipt_names_is_pointed_out(folder: Path) -> None:
    (folder / "extra.bin").write_bytes(b"")
    assert verify(Receipt.read(folder / "receipt.json"), KEYS.public, folder).unlisted == ("extra.bin",)


@pytest.mark.parametrize("schema", ["qedge.receipt/2", "other", None])
def test_an_unknown_schema_is_refused_by_name(schema: str | None) -> None:
    values = json.loads(issue(body(), KEYS).content()) | {"schema": schema}
    with pytest.raises(ReceiptTampered, match=r"accepted: qedge\.receipt/1"):
        Receipt.parse(canonical(values) + b"\n")


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"[]\n", b"null\n", b"\xff\n", b"[" * 50_000 + b"\n"])
def test_what_is_no_receipt_is_refused(content: bytes) -> None:
    with pytest.raises(ReceiptTampered):
        Receipt.parse(content)


def test_a_run_without_privacy_says_so_and_claims_nothing() -> None:
    receipt = issue(body(**WITHOUT), KEYS)
    assert (receipt.privacy, receipt.mechanism, receipt.guarantees) == ("no privacy guarantee", None, ())
    assert verify(receipt, KEYS.public).pinned


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": NO_GUARANTEE},
        {"mechanism": None},
        {"accountant": None},
        {"guarantees": ()},
        WITHOUT | {"privacy": "private"},
        WITHOUT | {"epsilon_at_1e_5": "1.0"},
        WITHOUT | {"guarantees": (Guarantee(adversary="released model", epsilon="1.0", delta="0.1", how=""),)},
    ],
)
def test_a_receipt_cannot_claim_privacy_by_halves(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        body(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"artifacts": {}},
        {"artifacts": {"../model.onnx": HASH}},
        {"artifacts": {"a/b": HASH}},
        {"artifacts": {".hidden": HASH}},
        {"artifacts": {"receipt.json": HASH}},
        {"artifacts": {"model.onnx": HASH.upper()}},
        {"uses": ()},
        {"created": "yesterday"},
        {"created": "2026-01-02T03:04:05+02:00"},
        {"parent": "none"},
        {"epsilon_at_1e_5": 11.5},
        {"epsilon_at_1e_5": "inf"},
        {"epsilon_at_1e_5": "nan"},
        {"unheard": "of"},
    ],
)
def test_a_body_that_says_something_unfit_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        body(**changes)


def test_a_derived_model_names_its_parent() -> None:
    parent = issue(body(), KEYS)
    assert issue(body(parent=parent.id), KEYS).parent == parent.id
    assert issue(body(parent=parent.id), KEYS).id != parent.id


def test_reading_or_writing_where_nothing_can_be_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(HomeUnusable):
        Receipt.read(tmp_path / "missing.json")
    with pytest.raises((HomeUnusable, StorageFull)):
        issue(body(), KEYS).write(tmp_path / "no" / "folder" / "receipt.json")


def test_a_guarantee_says_what_it_does_not_hold_for_once() -> None:
    open_, closed = Use(what="teaching", covered="NOT COVERED"), Use(what="comparing", covered="public by declaration")
    sentence = "(6, 0.01)-differential privacy for every client"
    first = excepting(sentence, [closed, open_])
    assert first == f"{sentence}, except for what is NOT COVERED: teaching"
    assert excepting(first, [closed, open_, Use(what="rounding", covered="NOT COVERED")]) == f"{first}, rounding"
    assert excepting(sentence, [closed]) == sentence
    assert excepting(NO_GUARANTEE, [open_]) == NO_GUARANTEE
