"""Secure sums, every message of the protocol by the code that clients and servers run, against Flower's SecAgg+ on the same vectors.

All members of a group are in this process, one after another; the cost of a client is that of one that stays to the end: rounding its
vector to integers, decoding, checking, sealing, masking, signing, with keys it has not seen before. Times are CPU seconds of one thread.
Three members of ten are lost once their shares were handed on, before they send a masked vector: what costs the server most. Both
protocols have the complete graph and the same threshold; Flower's signs nothing, and putting its messages into bytes and reading them is
not counted as its time, as it is in qedge's. Bytes are all that a client sends and all that it is sent, the weights in float32 among it,
against its vector at 24 bits an entry. End to end is a client's time, as often as there are clients, and the server's.

qedge's vectors are rounded to the clipping grid, as in every private round, secure or not, and Flower's to a finer one of its own. Exact
is the sum of the integers: qedge's is compared with the plain sum bit for bit. How far the means are from that of the float32 vectors, by
the roundings, stands apart.

The last rows are of a group of 100 with 1M entries: masking against AES-CTR and additions in the same blocks, and the server's unmasking.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from qedge.privacy.clipping import Grid, from_grid, to_grid
from qedge.secure_aggregation import identity
from qedge.secure_aggregation.client import SecureClient
from qedge.secure_aggregation.identity import EnrolmentAuthority, Identity
from qedge.secure_aggregation.masks import SEED_BYTES, add_masks
from qedge.secure_aggregation.ring import Ring
from qedge.secure_aggregation.server import SecureServer
from qedge.secure_aggregation.terms import Memory, Policy, Terms
from tests.benchmarks.figures import Figure, at_least, at_most, beside, never_more
from tests.benchmarks.peers import FLOWER, HERE
from tests.benchmarks.surroundings import environment, scratch

REPEAT = 5
RING = Ring(24)
BOUND = 1.0  # of the vectors' norm
THRESHOLD, COLLUDERS, LOST = 67, 20, 30  # of 100 members
KINDS = ("ed25519", "ml-dsa-65")
LARGE_MEMBERS, LARGE_LENGTH, LARGE_TURNS, THREADS = 100, 1_000_000, 3, 2
BLOCK_BYTES = 1 << 17  # as `masks` takes at a time
PEER_S = 3600.0
_FIRST_SEEN = ("join", "mask")  # stages in which a client checks signatures of keys it has not seen before
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Match:
    """A group against the peer. limits: of a client's and the server's CPU time, ms, if promised; turns: no more than so many."""

    members: int
    length: int
    limits: tuple[float, float] | None = None
    turns: int = REPEAT

    @property
    def lost(self) -> int:
        """How many are."""
        return self.members * LOST // 100


MATCHES = (Match(50, 100_000, (55, 150)), Match(100, 100_000, turns=1))


@dataclass
class Taken:
    """What a sum took, and how right it was.

    client, server: CPU seconds by stage; up, down: bytes of a client; error: the largest of the mean against that of the float32 vectors;
    wrong: entries of the sum that are not the plain sum's; unmasking_s: wall seconds.
    """

    client: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    server: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    up: float = 0.0
    down: float = 0.0
    error: float = 0.0
    wrong: int = 0
    unmasking_s: float = 0.0

    def end_to_end_s(self, members: int) -> float:
        """All that everybody takes."""
        return members * sum(self.client.values()) + sum(self.server.values())


class Group:
    """The members of one session and its server, all in this process."""

    def __init__(self, members: int, length: int, kind: str) -> None:
        authority = EnrolmentAuthority("bench", os.urandom(32), kind=kind)
        identities = [Identity(kind, os.urandom(32)) for _ in range(members)]
        authority.enrol([one.public for one in identities])
        roster, policy = authority.roster(range(members)), Policy(authority.public, THRESHOLD / 100, COLLUDERS / 100)
        threshold, colluders = share_of(members, THRESHOLD), share_of(members, COLLUDERS)
        sizes = (members, threshold, colluders, policy.server, RING.bits, length)
        terms = Terms("run", 1, 1, 0, roster.digest(), *sizes, survivors=threshold, noise="")
        self.clients = [SecureClient(one, policy, Memory()) for one in identities]
        self.server = SecureServer(terms, roster)
        self.taken = Taken()

    def sum(self, vector: Callable[[int], NDArray[np.int64]], lost: Collection[int], threads: int = 1) -> NDArray[np.int64]:
        """The sum of the members' vectors without those that are lost."""
        everybody = range(len(self.clients))
        staying = [member for member in everybody if member not in lost]
        self._step("join", everybody, self._serve("join", self.server.announcement))
        self._step("seal", everybody, self._serve("seal", self.server.directory))
        self._step("mask", staying, self._serve("mask", self.server.deliveries), vector)
        self._step("agree", staying, self._serve("agree", self.server.survivors))
        self._step("reveal", staying, self._serve("reveal", self.server.agreements))
        begun = time.perf_counter()
        total, survivors = self._serve("unmask", partial(self.server.total, threads))
        self.taken.unmasking_s = time.perf_counter() - begun
        if list(survivors) != staying:
            raise RuntimeError(f"a sum of the members {survivors}; expected {staying}")
        return total

    def _step(
        self,
        stage: str,
        members: Sequence[int],
        asked: bytes | Mapping[int, bytes],
        vector: Callable[[int], NDArray[np.int64]] | None = None,
    ) -> None:
        """All of these members answer, and the server takes what they say."""
        for member in members:
            content = asked if isinstance(asked, bytes) else asked[member]
            arguments = (content,) if vector is None else (content, vector(member))
            answer = getattr(self.clients[member], stage)
            if stage in _FIRST_SEEN:
                identity._public_key.cache_clear()  # what other clients of this process have seen, this one has not
                identity._enrolled.cache_clear()
            begun = time.process_time()
            said: bytes = answer(*arguments)
            self.taken.client[stage] += (time.process_time() - begun) / len(members)
            self.taken.up += len(said) / len(members)
            self.taken.down += len(content) / len(members)
            self._serve(stage, partial(self.server.take, said))

    def _serve(self, stage: str, serve: Callable[[], _Answer]) -> _Answer:
        begun = time.process_time()
        answer = serve()
        self.taken.server[stage] += time.process_time() - begun
        return answer


def measure(repeat: int) -> list[Figure]:
    """`repeat` turns, fewer where that is said."""
    FLOWER.python()
    figures: list[Figure] = []
    with scratch() as folder:
        for match in MATCHES:
            figures += _against_flower(folder, match, min(repeat, match.turns))
    return [*figures, *_large(min(repeat, LARGE_TURNS))]


def share_of(members: int, percent: int) -> int:
    """That share of the members, rounded up."""
    return -(-members * percent // 100)


def ours(vectors: NDArray[np.float32], lost: Sequence[int], kind: str) -> Taken:
    """A secure sum of the vectors, [members, length], rounded to the grid."""
    members, length = vectors.shape
    grid, rounded = Grid(BOUND, length), np.zeros(vectors.shape, dtype=np.int64)
    group = Group(members, length, kind)
    staying = np.delete(np.arange(members), lost)

    def integers(member: int) -> NDArray[np.int64]:
        begun = time.process_time()
        vector: NDArray[np.int64] = to_grid(vectors[member : member + 1], grid, np.random.default_rng(), lambda _: np.random.default_rng())[
            0
        ]
        group.taken.client["round"] += (time.process_time() - begun) / len(staying)
        rounded[member] = vector
        return vector

    total = group.sum(integers, lost)
    group.taken.down += vectors[0].nbytes
    group.taken.wrong = int((total != rounded.sum(axis=0)).sum())
    exact = vectors[staying].mean(axis=0, dtype=np.float64)
    group.taken.error = float(np.abs(from_grid(total, grid.step, len(staying)) - exact).max())
    return group.taken


def flowers(folder: Path, vectors: NDArray[np.float32], lost: Sequence[int]) -> tuple[Taken, Mapping[str, object]]:
    """The same by Flower in a process of its own; and what it says of its masks' seeds."""
    path = folder / "sum.npz"
    np.savez(path, vectors=vectors, lost=np.array(lost, dtype=np.int64))
    line = [str(FLOWER.python()), str(HERE / "flower_secagg.py"), str(path), str(share_of(len(vectors), THRESHOLD))]
    variables = environment(HOME=str(folder), OMP_NUM_THREADS="1", FLWR_TELEMETRY_ENABLED="0")
    done = subprocess.run(line, env=variables, cwd=folder, capture_output=True, text=True, timeout=PEER_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{FLOWER.name} ended with {done.returncode}:\n{done.stderr[-8000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    return Taken(said["client"], said["server"], said["up"], said["down"], said["error"]), said["seeds"]


def _against_flower(folder: Path, match: Match, turns: int) -> list[Figure]:
    own: dict[str, list[Taken]] = {kind: [] for kind in KINDS}
    theirs: list[Taken] = []
    seeds: Mapping[str, object] = {}
    for turn in range(turns):
        generator = np.random.default_rng([match.members, turn])
        vectors = generator.standard_normal((match.members, match.length), dtype=np.float32)
        vectors *= BOUND / np.linalg.norm(vectors, axis=1, keepdims=True)
        lost = sorted(generator.choice(match.members, match.lost, replace=False).tolist())
        for kind in KINDS:
            own[kind].append(ours(vectors, lost, kind))
        taken, seeds = flowers(folder, vectors, lost)
        theirs.append(taken)
    figures = [row for kind in KINDS for row in _own_figures(match, kind, own[kind])]
    return figures + _peer_figures(match, own, theirs, seeds)


def _own_figures(match: Match, kind: str, taken: Sequence[Taken]) -> list[Figure]:
    what = f"n = {match.members}, {kind}"
    client, server = match.limits if match.limits and kind == KINDS[0] else (None, None)
    up, down = (1.4, 1.8) if match.limits and kind == KINDS[0] else (None, None)
    return [
        _by_stage(f"{what}: a client", client, [one.client for one in taken]),
        _by_stage(f"{what}: the server", server, [one.server for one in taken]),
        _bytes(f"{what}: a client's bytes up, over its vector's", up, [one.up for one in taken], match.length),
        _bytes(f"{what}: … down", down, [one.down for one in taken], match.length),
        never_more(f"{what}: entries that are not the plain sum's, of {match.length:,}", 0, [one.wrong for one in taken]),
    ]


def _peer_figures(match: Match, own: Mapping[str, Sequence[Taken]], theirs: Sequence[Taken], seeds: Mapping[str, object]) -> list[Figure]:
    what = f"n = {match.members}, {FLOWER.name} {FLOWER.version}"
    first = own[KINDS[0]]
    figures = [
        _by_stage(f"{what}: a client", None, [one.client for one in theirs], "s CPU"),
        _by_stage(f"{what}: the server", None, [one.server for one in theirs], "s CPU"),
        _bytes(f"{what}: a client's bytes up, over the vector's", None, [one.up for one in theirs], match.length),
        _bytes(f"{what}: … down", None, [one.down for one in theirs], match.length),
        beside(f"{what}: largest error of the mean, by its quantisation", [one.error for one in theirs], "", 2),
        beside(f"n = {match.members}: … qedge's, by the rounding of every private round", [one.error for one in first], "", 2),
    ]
    for kind in KINDS:
        pairs = list(zip(theirs, own[kind], strict=True))
        whole = [their.end_to_end_s(match.members) / mine.end_to_end_s(match.members) for their, mine in pairs]
        server = [sum(their.server.values()) / sum(mine.server.values()) for their, mine in pairs]
        ends = f"n = {match.members}, {kind}: {FLOWER.name}'s time over qedge's, end to end"
        serving = f"n = {match.members}, {kind}: … the server's"
        promised = kind == KINDS[0]
        figures.append(at_least(ends, 20, whole, "times") if promised else beside(ends, whole, "times"))
        figures.append(at_least(serving, 200, server, "times") if promised else beside(serving, server, "times"))
    pair = " and ".join(f"{secret[:12]}…" for secret in _texts(seeds["pair"]))
    shown = f"{pair}: 32 bits are left of 256, {seeds['bits']} of them ever set between two clients"
    found = bool(seeds["same_mask"] and seeds["of_32_bits"])
    return [*figures, Figure(f"{what}: two 32-byte secrets with the same mask", "found", shown if found else "none", found)]


def _large(turns: int) -> list[Figure]:
    """The rows of the large group; its vectors are made when they are masked."""
    speed, floor, unmasking, wrong = [], [], [], []
    lost = range(0, LARGE_MEMBERS, 10), range(3, LARGE_MEMBERS, 10), range(7, LARGE_MEMBERS, 10)
    for _ in range(turns):
        speed.append(_masking_speed())
        floor.append(_block_speed())
        group, plain = Group(LARGE_MEMBERS, LARGE_LENGTH, KINDS[0]), np.zeros(LARGE_LENGTH, dtype=np.int64)

        def integers(member: int, plain: NDArray[np.int64] = plain) -> NDArray[np.int64]:
            vector = np.random.default_rng(member).integers(-80_000, 80_000, LARGE_LENGTH)
            plain += vector
            return vector

        total = group.sum(integers, {member for some in lost for member in some}, THREADS)
        unmasking.append(group.taken.unmasking_s)
        wrong.append(int((total != plain).sum()))
    what = f"n = {LARGE_MEMBERS}, {LARGE_LENGTH:,} entries"
    share = [one / other for one, other in zip(speed, floor, strict=True)]
    return [
        beside(f"{what}: a client's masks", [one / 1e9 for one in speed], "GB/s"),
        beside(f"{what}: AES-CTR and an addition, block by block", [one / 1e9 for one in floor], "GB/s"),
        at_least(f"{what}: masks over that", 0.8, share, "times", 2),
        at_most(f"{what}: the server's unmasking, wall time of {THREADS} threads", 2.5, unmasking, "s"),
        never_more(f"{what}: entries that are not the plain sum's", 0, wrong),
    ]


def _masking_speed() -> float:
    """Bytes of masks a second, by `add_masks`."""
    seeds = [(os.urandom(SEED_BYTES), 1 if place % 2 else -1) for place in range(LARGE_MEMBERS)]
    total = np.zeros(LARGE_LENGTH, RING.dtype)
    begun = time.process_time()
    add_masks(total, RING, seeds)
    return LARGE_MEMBERS * total.nbytes / (time.process_time() - begun)


def _block_speed() -> float:
    """Bytes a second of one stream in blocks, each added to the same block: what masks cannot be faster than."""
    stream = Cipher(algorithms.AES(os.urandom(SEED_BYTES)), modes.CTR(bytes(16))).encryptor()
    zeros, room, block = bytes(BLOCK_BYTES), bytearray(BLOCK_BYTES + 15), np.zeros(BLOCK_BYTES, np.uint8).view(RING.dtype)
    mask = np.frombuffer(room, np.uint8, BLOCK_BYTES).view(RING.dtype)
    blocks = LARGE_MEMBERS * LARGE_LENGTH * RING.dtype.itemsize // BLOCK_BYTES
    begun = time.process_time()
    for _ in range(blocks):
        stream.update_into(zeros, room)
        np.add(block, mask, out=block)
    return blocks * BLOCK_BYTES / (time.process_time() - begun)


def _by_stage(what: str, limit: float | None, taken: Sequence[Mapping[str, float]], unit: str = "ms CPU") -> Figure:
    """CPU time in all, and of each stage."""
    scale = 1000 if unit == "ms CPU" else 1
    whole = [scale * sum(stages.values()) for stages in taken]
    row = beside(what, whole, unit) if limit is None else at_most(what, limit, whole, unit)
    stages = ", ".join(f"{name} {scale * statistics.median(one[name] for one in taken):.3g}" for name in taken[0])
    return replace(row, measured=f"{row.measured}: {stages}")


def _bytes(what: str, limit: float | None, taken: Sequence[float], length: int) -> Figure:
    times = [one / RING.wire_bytes(length) for one in taken]
    return beside(what, times, "times") if limit is None else at_most(what, limit, times, "times", 6)


def _texts(values: object) -> Iterable[str]:
    return [str(value) for value in values] if isinstance(values, list) else []
