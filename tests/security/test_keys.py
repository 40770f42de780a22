"""The keys of a home: made once, private, apart for each domain."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import HomeUnusable, InvalidKey
from qedge.security.keys import Keys, key_id, public_key, public_text

FIXED = Keys(bytes(range(32)), bytes(32))
DOMAINS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_a_second_opening_finds_the_same_keys(tmp_path: Path) -> None:
    first, second = Keys.open(tmp_path), Keys.open(tmp_path)
    assert (first.public, first.key_id) == (second.public, second.key_id)
    assert first.mac("fingerprint", b"rows") == second.mac("fingerprint", b"rows")
    assert len(list((tmp_path / "keys").iterdir())) == 2  # nothing temporary stays


def test_two_homes_have_different_keys(tmp_path: Path) -> None:
    one, other = Keys.open(tmp_path / "a"), Keys.open(tmp_path / "b")
    assert one.public != other.public
    assert one.mac("fingerprint", b"rows") != other.mac("fingerprint", b"rows")


def test_processes_that_open_at_once_agree_on_the_keys(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(8), context.SimpleQueue()
    workers = [context.Process(target=_open_and_tell, args=(tmp_path, start, found)) for _ in range(8)]
    for worker in workers:
        worker.start()
    answers = {found.get() for _ in workers}
    for worker in workers:
        worker.join()
    assert answers == {(Keys.open(tmp_path).public, Keys.open(tmp_path).mac("p", b""))}


def _open_and_tell(home: Path, start: object, found: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    keys = Keys.open(home)
    found.put((keys.public, keys.mac("p", b"")))  # type: ignore[attr-defined]


def test_key_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    Keys.open(tmp_path)
    for path in (tmp_path / "keys").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["signing.ed25519", "silo.key"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    Keys.open(tmp_path)
    (tmp_path / "keys" / name).chmod(mode)
    with pytest.raises(InvalidKey, match=f"{mode:03o}"):
        Keys.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, b"x" * 10_000])
def test_a_key_file_of_another_length_is_refused(tmp_path: Path, content: bytes) -> None:
    Keys.open(tmp_path)
    (tmp_path / "keys" / "silo.key").write_bytes(content)
    with pytest.raises(InvalidKey, match="32 bytes"):
        Keys.open(tmp_path)


def test_a_lost_silo_key_is_not_made_anew(tmp_path: Path) -> None:
    Keys.open(tmp_path)
    (tmp_path / "keys" / "silo.key").unlink()
    with pytest.raises(InvalidKey, match="put it back"):
        Keys.open(tmp_path)


def test_an_opening_cut_off_between_the_two_keys_is_gone_on_with(tmp_path: Path) -> None:
    mac = Keys.open(tmp_path).mac("fingerprint", b"rows")
    (tmp_path / "keys" / "signing.ed25519").unlink()
    assert Keys.open(tmp_path).mac("fingerprint", b"rows") == mac


def test_a_home_that_is_a_file_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(HomeUnusable):
        Keys.open(tmp_path / "home")


@settings(deadline=None)
@given(st.binary(max_size=200), DOMAINS)
def test_a_signature_holds_for_its_own_message_and_domain(message: bytes, domain: str) -> None:
    assert FIXED.verify(domain, message, FIXED.sign(domain, message))


@settings(deadline=None)
@given(st.binary(max_size=50), st.binary(max_size=50), DOMAINS, DOMAINS)
def test_no_signature_or_mac_serves_another_domain_or_message(one: bytes, other: bytes, mine: str, theirs: str) -> None:
    if (one, mine) == (other, theirs):
        return
    assert not FIXED.verify(theirs, other, FIXED.sign(mine, one))
    assert FIXED.mac(mine, one) != FIXED.mac(theirs, other)


@settings(deadline=None)
@given(st.integers(0, 511))
def test_any_altered_bit_of_a_signature_is_noticed(bit: int) -> None:
    signature = bytearray(FIXED.sign("ledger", b"event"))
    signature[bit // 8] ^= 1 << bit % 8
    assert not FIXED.verify("ledger", b"event", bytes(signature))


def test_an_empty_or_short_public_key_verifies_nothing() -> None:
    signature = FIXED.sign("ledger", b"event")
    for public in (b"", b"short", bytes(32), os.urandom(32)):
        assert not FIXED.verify("ledger", b"event", signature, public)


def test_the_signature_is_ed25519_over_domain_nul_message() -> None:
    Ed25519PublicKey.from_public_bytes(FIXED.public).verify(FIXED.sign("ledger", b"event"), b"qedge/ledger\0event")


@pytest.mark.parametrize("domain", ["", "a\0b"])
def test_a_domain_that_could_be_mistaken_is_a_mistake(domain: str) -> None:
    with pytest.raises(ValueError, match="domain"):
        FIXED.sign(domain, b"")


@pytest.mark.parametrize("text", ["{}", "  {}\n", "ed25519:{}", "ED25519:{}"])
def test_a_pinned_key_is_read_as_it_is_written(text: str) -> None:
    assert public_key(text.format(FIXED.public.hex())) == FIXED.public
    assert public_key(public_text(FIXED.public)) == FIXED.public


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, "00" * 33, "00" * 31, "rsa:" + "00" * 32, "00" * 32 + "\n00"])
def test_what_is_no_key_is_refused_as_a_pinned_key(text: str) -> None:
    with pytest.raises(InvalidKey, match="64 hex digits"):
        public_key(text)


def test_keys_are_neither_shown_nor_pickled() -> None:
    assert FIXED.key_id in repr(FIXED)
    assert key_id(FIXED.public) == FIXED.key_id
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(FIXED)
