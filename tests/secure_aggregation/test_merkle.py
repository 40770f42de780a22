"""The tree is that of RFC 6962, and a proof shows these leaves at these places and no others."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedge.secure_aggregation.merkle import MerkleTree, leaf, path_length, root_of

# The leaves and roots with which implementations of RFC 6962 are tested (google/certificate-transparency, merkle_tree_test).
LEAVES = [
    bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaves_of(count: int) -> list[bytes]:
    return [leaf(b"%d" % place) for place in range(count)]


def by_definition(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1: split at the largest power of two below the number of leaves."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + by_definition(leaves[:split]) + by_definition(leaves[split:])).digest()


@pytest.mark.parametrize("count", range(1, 9))
def test_roots_are_those_of_the_published_vectors(count: int):
    assert MerkleTree([leaf(content) for content in LEAVES[:count]]).root.hex() == ROOTS[count - 1]


@given(count=st.integers(1, 200))
def test_a_root_is_that_of_the_definition(count: int):
    assert MerkleTree(leaves_of(count)).root == by_definition(leaves_of(count))


@given(data=st.data(), count=st.integers(1, 70))
def test_any_leaves_are_proven_at_their_places_and_at_no_others(data: st.DataObject, count: int):
    leaves = leaves_of(count)
    tree = MerkleTree(leaves)
    places = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    shown, proof = {place: leaves[place] for place in places}, tree.proof(sorted(places))
    assert root_of(shown, count, proof) == tree.root
    moved = data.draw(st.integers(0, count - 1))
    place = data.draw(st.sampled_from(sorted(places)))
    if moved not in places:
        elsewhere = {moved if at == place else at: digest for at, digest in shown.items()}
        assert root_of(elsewhere, count, proof) != tree.root
    assert root_of({**shown, place: leaf(b"another")}, count, proof) != tree.root


@given(data=st.data(), count=st.integers(2, 70))
def test_a_proof_cut_short_or_with_more_or_other_nodes_proves_nothing(data: st.DataObject, count: int):
    tree = MerkleTree(leaves_of(count))
    place = data.draw(st.integers(0, count - 1))
    shown, path = {place: leaves_of(count)[place]}, tree.path(place)
    assert path == tree.proof([place])
    assert root_of(shown, count, path[:-1]) is None
    assert root_of(shown, count, (*path, bytes(32))) is None
    at = data.draw(st.integers(0, len(path) - 1))
    assert root_of(shown, count, (*path[:at], bytes(32), *path[at + 1 :])) != tree.root


def test_no_leaves_and_places_outside_the_tree_prove_nothing():
    tree = MerkleTree(leaves_of(3))
    assert root_of({}, 3, [tree.root]) is None
    assert root_of({3: tree.root}, 3, []) is None
    assert root_of({-1: tree.root}, 3, []) is None


def test_a_node_is_not_taken_for_a_leaf():
    one, other, third = (hashlib.sha256(content).digest() for content in (b"a", b"b", b"c"))
    tree = MerkleTree([leaf(one), leaf(other), leaf(third)])
    inner = leaf(one) + leaf(other)
    assert root_of({0: leaf(inner)}, 2, [leaf(third)]) != tree.root


@given(count=st.integers(1, 70), data=st.data())
def test_a_path_is_the_proof_of_one_place_and_as_long_as_is_said(count: int, data: st.DataObject):
    tree, place = MerkleTree(leaves_of(count)), data.draw(st.integers(0, count - 1))
    assert tree.path(place) == tree.proof([place])
    assert len(tree.path(place)) == path_length(place, count)
