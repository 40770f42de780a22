"""The audit log: what was written stays, and whatever is done to the file is noticed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qedge.audit import log as audit_log
from qedge.audit.canonical import canonical, digest
from qedge.audit.log import CHECKPOINT_EVERY, AuditLog
from qedge.audit.witness import GENESIS, Head, Witness
from qedge.errors import Failed, HomeUnusable, LogTampered, RolledBack, StorageFull, Tampered
from qedge.security.keys import Keys
from qedge.storage import locked

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.open(tmp_path)


def filled(home: Path, keys: Keys, entries: int) -> AuditLog:
    log = AuditLog(home, keys, actor="tester")
    while log.head().seq < entries:
        log.append("thing.done", number=log.head().seq)
    return log


def in_child(act: Callable[[], object]) -> int:
    """Run `act` in a process of its own and give how it ended: an exit code, or minus the signal."""

    child = FORK.Process(target=act)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def test_entries_come_back_as_they_were_written(tmp_path: Path, keys: Keys) -> None:
    log = AuditLog(tmp_path, keys, actor="ann", clock=lambda: datetime(2026, 1, 2, 3, 4, 5, 6, UTC))
    log.append("run.began", run="r-1", rounds=60)
    log.append("job.refused", actor="bob", reason="epsilon", ledger=Head(3, "ab" * 32))
    first, second = AuditLog(tmp_path, keys).entries()
    assert (first.seq, first.time, first.actor, first.event) == (1, "2026-01-02T03:04:05.000006+00:00", "ann", "run.began")
    assert first.facts == {"run": "r-1", "rounds": 60}
    assert (second.actor, second.previous, second.facts["ledger"]) == ("bob", first.hash, {"seq": 3, "hash": "ab" * 32})
    assert log.ledger_head() == Head(3, "ab" * 32)


def test_the_hash_of_an_entry_can_be_recomputed_with_nothing_of_ours(tmp_path: Path, keys: Keys) -> None:
    filled(tmp_path, keys, 3)
    previous = "0" * 64
    for line in (tmp_path / "audit.log").read_text().splitlines():
        entry = json.loads(line)
        claimed = entry.pop("hash")
        assert entry["previous"] == previous
        assert digest(entry) == claimed
        previous = claimed


def test_every_64th_entry_is_a_signed_checkpoint_and_a_copy_verifies_with_the_public_key_alone(tmp_path: Path, keys: Keys) -> None:
    log = filled(tmp_path, keys, 2 * CHECKPOINT_EVERY + 3)
    assert [entry.seq for entry in log.entries() if entry.event == "checkpoint"] == [CHECKPOINT_EVERY, 2 * CHECKPOINT_EVERY]
    copy = shutil.copy(log.path, tmp_path / "copy")
    report = audit_log.verify(Path(copy), keys.public)
    assert (report.entries, report.checkpoints, report.signed) == (131, 2, 127)
    assert log.checkpoint() == log.head()
    assert audit_log.verify(log.path, keys.public).signed == 131
    assert log.verify().signed == 132  # the witness covers the rest


def test_another_public_key_verifies_no_checkpoint(tmp_path: Path, keys: Keys) -> None:
    log = filled(tmp_path, keys, 2)
    log.checkpoint()
    with pytest.raises(LogTampered, match="line 3: the checkpoint's signature"):
        audit_log.verify(log.path, Keys.open(tmp_path / "other").public)


@pytest.mark.parametrize("fact", [1.5, b"bytes", {"nested": 0.1}])
def test_a_fact_without_canonical_bytes_is_refused_and_nothing_is_written(tmp_path: Path, keys: Keys, fact: object) -> None:
    log = filled(tmp_path, keys, 1)
    with pytest.raises(TypeError):
        log.append("thing.done", fact=fact)  # type: ignore[arg-type]
    assert log.verify().entries == 1


def test_the_log_and_its_witness_are_private_files(tmp_path: Path, keys: Keys) -> None:
    filled(tmp_path, keys, 1)
    assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys" / "heads.json").stat().st_mode & 0o777 == 0o600


def test_processes_that_append_at_once_make_one_chain(tmp_path: Path, keys: Keys) -> None:
    workers = [FORK.Process(target=_append_many, args=(tmp_path, name)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    entries = AuditLog(tmp_path, keys).entries()
    for name in "abcd":
        assert [entry.facts["number"] for entry in entries if (entry.actor, entry.event) == (name, "thing.done")] == list(range(40))


def _append_many(home: Path, name: str) -> None:
    log = AuditLog(home, Keys.open(home), actor=name)
    for number in range(40):
        log.append("thing.done", number=number)


# ---- altered


def test_every_byte_of_the_log_counts(tmp_path: Path, keys: Keys) -> None:
    log = filled(tmp_path, keys, 4)
    log.checkpoint()
    content = log.path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        log.path.write_bytes(changed)
        with pytest.raises(Tampered):
            AuditLog(tmp_path, keys)
        with pytest.raises(LogTampered):
            audit_log.verify(log.path, keys.public)
    log.path.write_bytes(content)
    assert AuditLog(tmp_path, keys).verify().entries == 5


def test_every_byte_of_the_witness_counts(tmp_path: Path, keys: Keys) -> None:
    filled(tmp_path, keys, 2)
    path = tmp_path / "keys" / "heads.json"
    content = path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(LogTampered, match="witness"):
            AuditLog(tmp_path, keys)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_rewriting_without_the_key_passes(tmp_path: Path, keys: Keys, data: st.DataObject) -> None:
    """Lines taken out, doubled, exchanged or rewritten with a hash of their own; the chain mended behind them or not."""
    log = filled(tmp_path, keys, 8)
    content = log.path.read_bytes()
    entries = [json.loads(line) for line in content.splitlines()]
    at = data.draw(st.integers(0, len(entries) - 1))
    other = data.draw(st.integers(0, len(entries) - 1).filter(lambda index: index != at))
    act = data.draw(st.sampled_from(["remove", "double", "exchange", "rewrite", "cut"]))
    if act == "remove":
        del entries[at]
    elif act == "double":
        entries.insert(other, entries[at])
    elif act == "exchange":
        entries[at], entries[other] = entries[other], entries[at]
    elif act == "rewrite":
        entries[at]["facts"] = {"number": -1}
    else:
        del entries[at:]
    if data.draw(st.booleans()):
        previous = GENESIS.hash
        for seq, entry in enumerate(entries, 1):
            entry |= {"seq": seq, "previous": previous}
            entry["hash"] = previous = digest({name: value for name, value in entry.items() if name != "hash"})
    log.path.write_bytes(b"".join(canonical(entry) + b"\n" for entry in entries))
    try:
        with pytest.raises(Tampered):
            AuditLog(tmp_path, keys)
    finally:
        log.path.write_bytes(content)


def test_the_first_bad_line_is_named(tmp_path: Path, keys: Keys) -> None:
    log = filled(tmp_path, keys, 9)
    lines = log.path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b"thing.done", b"thing.gone")
    log.path.write_bytes(b"".join(lines))
    with pytest.raises(LogTampered, match="line 5: its hash") as caught:
        AuditLog(tmp_path, keys)
    assert caught.value.facts["line"] == 5


def test_an_entry_rewritten_with_a_hash_of_its_own_is_noticed_at_the_next(tmp_path: Path, keys: Keys) -> None:
    log = filled(tmp_path, keys, 5)
    lines = log.path.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[2]) | {"facts": {"number": -1}}
    del entry["hash"]
    lines[2] = canonical(entry | {"hash": digest(entry)}) + b"\n"
    log.path.write_bytes(b"".join(lines))
    with pytest.raises(LogTampered, match="line 4: it does not follow"):
        audit_log.verify(log.path, keys.public)


def test_a_missing_checkpoint_is_noticed_in_a_copy(tmp_path: Path, keys: Keys) -> None:
    """A chain mended by someone without the key has no signature where one belongs."""
    log = filled(tmp_path, keys, CHECKPOINT_EVERY + 1)
    previous, lines = GENESIS.hash, []
    for line in log.path.read_bytes().splitlines():
        entry = json.loads(line)
        entry |= {"previous": previous, "event": "thing.done", "facts": {}}
        entry["hash"] = previous = digest({name: value for name, value in entry.items() if name != "hash"})
        lines.append(canonical(entry) + b"\n")
    log.path.write_bytes(b"".join(lines))
    with pytest.raises(LogTampered, match="line 64: a checkpoint belongs here"):
        audit_log.verify(log.path, keys.public)


# ---- put back


@pytest.mark.parametrize("lines", [1, 3, 5])
def test_a_log_cut_at_a_line_is_rolled_back(tmp_path: Path, keys: Keys, lines: int) -> None:
    log = filled(tmp_path, keys, 5)
    content = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(content[:-lines]))
    with pytest.raises(RolledBack, match=f"ends at entry {5 - lines}; 5 entries were seen"):
        AuditLog(tmp_path, keys)
    with pytest.raises(RolledBack, match="shorter"):
        log.append("thing.done")


def test_a_log_cut_within_a_seen_line_is_rolled_back_and_left_as_it_is(tmp_path: Path, keys: Keys) -> None:
    log = filled(tmp_path, keys, 5)
    content = log.path.read_bytes()
    log.path.write_bytes(content[:-10])
    with pytest.raises(RolledBack):
        AuditLog(tmp_path, keys)
    assert log.path.read_bytes() == content[:-10]


def test_a_lost_log_or_witness_is_noticed(tmp_path: Path, keys: Keys) -> None:
    log = filled(tmp_path, keys, 2)
    log.path.rename(tmp_path / "away")
    with pytest.raises(RolledBack):
        AuditLog(tmp_path, keys)
    (tmp_path / "away").rename(log.path)
    (tmp_path / "keys" / "heads.json").unlink()
    with pytest.raises(RolledBack, match="witness"):
        AuditLog(tmp_path, keys)


def test_a_head_kept_elsewhere_shows_that_log_and_witness_were_put_back(tmp_path: Path, keys: Keys) -> None:
    log = filled(tmp_path, keys, 2)
    witness = tmp_path / "keys" / "heads.json"
    old = log.path.read_bytes(), witness.read_bytes()
    filled(tmp_path, keys, 6)
    kept = log.head()
    log.path.write_bytes(old[0])
    witness.write_bytes(old[1])
    again = AuditLog(tmp_path, keys)
    assert not again.contains(kept)
    assert again.contains(again.head())


def test_a_witness_of_another_key_is_not_believed(tmp_path: Path, keys: Keys) -> None:
    filled(tmp_path, keys, 2)
    Witness(GENESIS, GENESIS).create(tmp_path, Keys.open(tmp_path / "other"))
    with pytest.raises(LogTampered, match="another key"):
        AuditLog(tmp_path, keys)


# ---- crashes and full disks


@pytest.mark.parametrize("kept", [1, 50, 0.5, -2, -1])
def test_a_line_torn_by_a_crash_is_cut_off_and_the_log_says_so(tmp_path: Path, keys: Keys, kept: float) -> None:
    """kept: how many bytes of the line reached the disk; half of it; all but so many."""
    filled(tmp_path, keys, 3)

    def torn_append() -> None:
        log, write = AuditLog(tmp_path, keys), os.write

        def die_in_the_middle(file: int, line: bytes) -> int:
            write(file, line[: int(len(line) * kept) if kept == 0.5 else int(kept)])
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("still alive")

        os.write = die_in_the_middle  # type: ignore[assignment]
        log.append("thing.done", number=99)

    assert in_child(torn_append) == -signal.SIGKILL
    assert not (tmp_path / "audit.log").read_bytes().endswith(b"\n")
    log = AuditLog(tmp_path, keys)
    assert [entry.event for entry in log.entries()] == ["thing.done"] * 3 + ["log.torn-line-cut"]
    log.append("thing.done")
    assert log.verify().entries == 5


@pytest.mark.parametrize("call", ["fsync", "write", "pwrite", "open"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_killed_at_any_system_call_the_log_goes_on_with_all_that_was_acknowledged(tmp_path: Path, keys: Keys, call: str, nth: int) -> None:
    filled(tmp_path, keys, CHECKPOINT_EVERY - 2)
    told, tell = os.pipe()

    def append_and_die() -> None:
        log, real, calls = AuditLog(tmp_path, keys), getattr(os, call), [0]

        def die(*given: object, **named: object) -> object:
            calls[0] += 1
            if calls[0] == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        for number in range(4):
            setattr(os, call, die)
            log.append("thing.done", number=1000 + number)
            setattr(os, call, real)
            os.write(tell, b"%d " % (1000 + number))

    ended = in_child(append_and_die)
    os.close(tell)
    with os.fdopen(told) as pipe:
        acknowledged = [int(number) for number in pipe.read().split()]
    assert ended == (-signal.SIGKILL if len(acknowledged) < 4 else 0)
    found = [entry.facts["number"] for entry in AuditLog(tmp_path, keys).entries() if entry.event == "thing.done"]
    later = [number for number in found if isinstance(number, int) and number >= 1000]
    assert later[: len(acknowledged)] == acknowledged
    assert len(later) <= len(acknowledged) + 1


def test_a_full_disk_adds_nothing_and_the_log_goes_on_afterwards(tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = filled(tmp_path, keys, 2), os.write

    def half_then_full(file: int, line: bytes) -> int:
        if len(line) < 60:
            raise OSError(28, "No space left on device")
        return write(file, line[: len(line) // 2])

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(StorageFull, match="No space left"):
        log.append("thing.done")
    monkeypatch.undo()
    assert log.verify().entries == 2
    assert log.append("thing.done").seq == 3


def test_a_log_that_cannot_be_opened_is_an_unusable_home(tmp_path: Path, keys: Keys) -> None:
    (tmp_path / "audit.log").mkdir()
    with pytest.raises(HomeUnusable):
        AuditLog(tmp_path, keys)


def test_a_log_that_is_a_link_to_elsewhere_is_not_followed(tmp_path: Path, keys: Keys) -> None:
    (tmp_path / "audit.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HomeUnusable):
        AuditLog(tmp_path, keys)


def test_a_lock_kept_too_long_is_a_clear_failure_and_dies_with_its_holder(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(Failed, match="locked by another process"), locked(tmp_path / "lock", timeout_s=0.05):
        raise AssertionError("two hold it")

    def hold_and_die() -> None:
        with locked(tmp_path / "lock"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(hold_and_die) == -signal.SIGKILL
    with locked(tmp_path / "lock", timeout_s=0.05):
        pass
