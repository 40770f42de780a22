"""The engine in a process of its own, whose data the kernel limits: an overrun is an error there, and never the end of the node.

The ledger of bytes refuses what it can foresee; `RLIMIT_DATA` stands behind it. The limit is what the process has, what a load may map and
take, and some headroom; it moves with each load. An allocation past it fails inside ONNX Runtime or Python, which say so: that becomes
`OverBudget`, and the process goes on. One that dies all the same is started again with its models, and the call is tried once more.

A private mapping of external weights counts in full against that limit, and ONNX Runtime maps them twice while it loads.

Requests go over a socket pair for each of a few channels, as a header in MessagePack and the rows' bytes: what the process says is data,
not code.
Source: setrlimit(2); MessagePack.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from qedge.edge.calls import Record
from qedge.edge.card import Card
from qedge.edge.cascade import Cascade
from qedge.edge.engine import Answer, EdgeEngine, refuse_rows
from qedge.edge.ladder import Ladder
from qedge.edge.memory import checked_budget
from qedge.edge.node import own_card
from qedge.edge.pss import pss_bytes
from qedge.edge.rung import Rows
from qedge.edge.selector import Requirement
from qedge.errors import Failed, OverBudget, QEdgeError, UnknownModel, nearest
from qedge.monitoring.metrics import ignore

HEADROOM_BYTES = 32 << 20
TIMEOUT_S = 60.0
_FRAME = struct.Struct("<II")
_NO_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "Unable to allocate")
Message = dict[str, Any]


@dataclass(frozen=True)
class _Added:
    """What a new process must be told of a model."""

    folder: str
    key: str
    requirement: dict[str, float]
    card: str
    cascade: str | None
    features: int


class IsolatedEngine:
    """An `EdgeEngine` in a child process. For several threads at once; as many calls run together as there are channels."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        home: Path | None = None,
        record: Record = ignore,
        headroom_bytes: int = HEADROOM_BYTES,
        channels: int = 2,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """headroom_bytes: what calls may take beside the models; timeout_s: after which an answer is no longer waited for.

        Raises:
            EdgeError: a budget that is no number of bytes over 0. Failed: the process does not start.
        """
        self._home, self._record, self._timeout_s = home, record, timeout_s
        self._wanted = (checked_budget(budget_bytes), headroom_bytes, channels)
        self._added: dict[str, _Added] = {}
        self._lost: dict[str, QEdgeError] = {}
        self._starting = threading.RLock()
        self.restarts = 0
        self._child = self._start()

    def __enter__(self) -> IsolatedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        name: str,
        ladder: Ladder | Path,
        requirement: Requirement | None = None,
        *,
        card: Card | None = None,
        cascade: Cascade | None = None,
    ) -> str:
        """As `EdgeEngine.add`; which rung will answer, in words."""
        opened = Ladder.open(ladder) if isinstance(ladder, Path) else ladder
        key = next(iter(opened.receipts.values())).public_key
        filled = own_card(opened, self._home, card)
        wanted = _Added(
            str(opened.folder),
            key,
            (requirement or Requirement()).given(),
            filled.model_dump_json(by_alias=True),
            None if cascade is None else cascade.model_dump_json(),
            filled.features,
        )
        with self._starting:
            said = self._ask({"op": "add", "name": name, **vars(wanted)})
            self._added[name] = wanted
            self._lost.pop(name, None)
        return str(said["text"])

    def remove(self, name: str) -> None:
        """As `EdgeEngine.remove`."""
        with self._starting:
            self._find(name)
            del self._added[name]
            with contextlib.suppress(UnknownModel):  # a process that was started just now has not heard of it
                self._ask({"op": "remove", "name": name})

    def infer(self, name: str, rows: Rows) -> Answer:
        """As `EdgeEngine.infer`.

        Raises:
            OverBudget: also when the call itself took more memory than there is.
            Failed: also when the process ended over this call twice, or did not answer in time.
        """
        refuse_rows(rows, self._find(name).features)
        said = self._ask({"op": "infer", "name": name, "shape": rows.shape}, np.ascontiguousarray(rows).tobytes())
        probabilities = np.frombuffer(said["payload"], np.float32).reshape(len(rows), -1).copy()
        return Answer(probabilities, said["rung"], said["receipt"], said["escalated"], tuple(said["labels"]))

    def explain(self, name: str) -> str:
        """As `EdgeEngine.explain`, in words."""
        self._find(name)
        return str(self._ask({"op": "explain", "name": name})["text"])

    def review(self) -> None:
        """As `EdgeEngine.review`: record what happened since the last time."""
        self._ask({"op": "review"})

    @property
    def loaded(self) -> dict[str, dict[str, int]]:
        """As `EdgeEngine.loaded`."""
        found: dict[str, dict[str, int]] = self._ask({"op": "loaded"})["loaded"]
        return found

    @property
    def pid(self) -> int:
        """Of the process that answers now."""
        return self._child.process.pid

    @property
    def pss_bytes(self) -> int:
        """What that process takes, its Python included."""
        return pss_bytes(self.pid)

    def close(self) -> None:
        """End the process."""
        with self._starting, contextlib.suppress(QEdgeError, OSError):
            self.review()
        self._child.end()

    def _find(self, name: str) -> _Added:
        found = self._added.get(name)
        if found is None:
            hint = nearest(name, self._added) if self._added else "there is none yet"
            raise UnknownModel(f"no model '{name}' on this node; {hint}", model=name)
        if name in self._lost:
            raise self._lost[name]
        return found

    def _start(self) -> _Child:
        """A process with every model; one that can no longer be added is lost, and asking for it says why."""
        child, self._lost = _Child(*self._wanted, self._timeout_s), {}
        try:
            self._said(child.ask({"op": "review"}, b""))
            for name, wanted in self._added.items():
                try:
                    self._said(child.ask({"op": "add", "name": name, **vars(wanted)}, b""))
                except QEdgeError as error:
                    self._lost[name] = error
        except OSError:
            raise Failed(f"the engine's process does not start: it ended with {child.end()}") from None
        return child

    def _ask(self, message: Message, payload: bytes = b"") -> Message:
        """The child's reply; a child that ended is replaced, and asked once more."""
        for last in (False, True):
            child = self._child
            try:
                return self._said(child.ask(message, payload))
            except OSError as error:
                how = child.end()
                self._replace(child)
                if last:
                    slow = isinstance(error, TimeoutError)
                    reason = f"it did not answer in {self._timeout_s:g} s" if slow else f"it ended with {how}"
                    raise Failed(f"the engine's process was lost twice over one request: {reason}", how=how) from None
        raise AssertionError

    def _replace(self, dead: _Child) -> None:
        with self._starting:
            if self._child is dead:
                self.restarts += 1
                self._child = self._start()

    def _said(self, reply: Message) -> Message:
        for name, value, tags in reply.pop("records", ()):
            self._record(name, value, **tags)
        if "code" in reply:
            raise _kind(reply["code"])(reply["message"], **reply["facts"])
        return reply


class _Child:
    """The process and its channels."""

    def __init__(self, budget_bytes: int, headroom_bytes: int, channels: int, timeout_s: float) -> None:
        pairs = [socket.socketpair() for _ in range(channels)]
        theirs = [there.fileno() for _, there in pairs]
        command = [sys.executable, "-m", "qedge.edge.isolated", str(budget_bytes), str(headroom_bytes), *map(str, theirs)]
        self.process = subprocess.Popen(command, pass_fds=theirs, stdin=subprocess.DEVNULL)
        self._free: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        for ours, there in pairs:
            there.close()
            ours.settimeout(timeout_s)
            self._free.put(ours)
        self._ours = [ours for ours, _ in pairs]
        self._ending = threading.Lock()

    def ask(self, message: Message, payload: bytes) -> Message:
        """The reply, over a channel of this call's own.

        Raises:
            OSError: the process has ended, or did not answer in time.
        """
        channel = self._free.get()
        try:
            _send(channel, message, payload)
            found = _receive(channel)
        finally:
            self._free.put(channel)  # broken or not: whoever takes it next must learn of it
        if found is None:
            raise ConnectionResetError("the engine's process has ended")
        message, payload = found
        return {**message, "payload": payload}

    def end(self) -> str:
        """Have it end; how it did."""
        with self._ending:
            for ours in self._ours:
                with contextlib.suppress(OSError):
                    ours.shutdown(socket.SHUT_RDWR)  # for whoever waits on it; closed with the last of them
            try:
                code = self.process.wait(timeout=2.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                code = self.process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _send(channel: socket.socket, message: Message, payload: bytes) -> None:
    header = msgpack.packb(message)
    channel.sendall(_FRAME.pack(len(header), len(payload)) + header + payload)


def _receive(channel: socket.socket) -> tuple[Message, bytes] | None:
    """A message and its payload; None at the end of the channel."""
    sizes = _exactly(channel, _FRAME.size)
    if sizes is None:
        return None
    header, payload = _FRAME.unpack(sizes)
    content = _exactly(channel, header + payload)
    if content is None:
        return None
    message: Message = msgpack.unpackb(content[:header])
    return message, content[header:]


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    found = bytearray()
    while len(found) < size:
        more = channel.recv(min(size - len(found), 1 << 20))
        if not more:
            return None
        found += more
    return bytes(found)


def _kind(code: str) -> type[QEdgeError]:
    """The error class of a code."""
    waiting: list[type[QEdgeError]] = [QEdgeError]
    for kind in waiting:
        if kind.code == code:
            return kind
        waiting += kind.__subclasses__()
    return Failed


class _Server:
    """The child's side."""

    def __init__(self, budget_bytes: int, headroom_bytes: int) -> None:
        self._headroom = headroom_bytes
        self._records: list[tuple[str, float, dict[str, str]]] = []
        self._recording = threading.Lock()
        self._engine = EdgeEngine(budget_bytes, record=self._record, growing=self.limit)
        self._operations: dict[str, Callable[[Message, bytes], tuple[Message, bytes]]] = {
            "add": self._add,
            "remove": self._remove,
            "infer": self._infer,
            "explain": lambda said, _: ({"text": str(self._engine.explain(said["name"]))}, b""),
            "loaded": lambda *_: ({"loaded": self._engine.loaded}, b""),
            "review": self._review,
        }

    def serve(self, channel: socket.socket) -> None:
        """Answer until the other side is gone; what nobody foresaw ends the process, which is then replaced."""
        try:
            while (found := _receive(channel)) is not None:
                reply, payload = self._reply(*found)
                with self._recording:
                    records, self._records = self._records, []
                _send(channel, reply | {"records": records}, payload)
        except OSError:
            return
        except BaseException as error:  # noqa: BLE001
            print(f"the edge engine's process ends: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(70)

    def _reply(self, message: Message, payload: bytes) -> tuple[Message, bytes]:
        try:
            return self._operations[message["op"]](message, payload)
        except (QEdgeError, MemoryError) as error:
            known = error if isinstance(error, QEdgeError) and not _overran(error) else self._overrun(error)
            return {"code": known.code, "message": known.message, "facts": known.facts}, b""

    def _add(self, said: Message, _: bytes) -> tuple[Message, bytes]:
        ladder = Ladder.open(Path(said["folder"]), bytes.fromhex(said["key"]))
        cascade = said["cascade"]
        told = self._engine.add(
            said["name"],
            ladder,
            Requirement(**said["requirement"]),
            card=Card.parse(said["card"].encode(), "the card that was sent"),
            cascade=None if cascade is None else Cascade.model_validate_json(cascade),
        )
        return {"text": str(told)}, b""

    def _infer(self, said: Message, payload: bytes) -> tuple[Message, bytes]:
        answer = self._engine.infer(said["name"], np.frombuffer(payload, np.float32).reshape(said["shape"]))
        told = {"rung": answer.rung, "receipt": answer.receipt, "escalated": answer.escalated, "labels": answer.labels}
        return told, answer.probabilities.tobytes()

    def _remove(self, said: Message, _: bytes) -> tuple[Message, bytes]:
        self._engine.remove(said["name"])
        return {}, b""

    def _review(self, _: Message, __: bytes) -> tuple[Message, bytes]:
        self._engine.review()
        return {}, b""

    def limit(self, coming: int) -> None:
        """Let the process take so many bytes more than it has, and the headroom."""
        resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + coming + self._headroom, resource.RLIM_INFINITY))

    def _overrun(self, error: BaseException) -> OverBudget:
        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        return OverBudget(
            f"the call took more memory than the models and {self._headroom} bytes of headroom, and was stopped: {str(error)[:200]}",
            limit_bytes=limit,
            headroom_bytes=self._headroom,
        )

    def _record(self, name: str, value: float, **tags: str) -> None:
        with self._recording:
            self._records.append((name, value, tags))


def _overran(error: QEdgeError) -> bool:
    """Whether what an engine reports is that an allocation failed."""
    return any(words in error.message for words in _NO_MEMORY)


def _data_bytes() -> int:
    """What counts against RLIMIT_DATA in this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))


def main(budget: str, headroom: str, *channels: str) -> None:
    """The child."""
    server, limited = _Server(int(budget), int(headroom)), threading.Event()

    def serve(channel: socket.socket) -> None:
        limited.wait()
        server.serve(channel)

    threads = [threading.Thread(target=serve, args=(socket.socket(fileno=int(channel)),)) for channel in channels]
    for thread in threads:
        thread.start()
    server.limit(0)  # their stacks are there by now
    limited.set()
    for thread in threads:
        thread.join()
    os._exit(0)  # nothing here outlives its channels


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is the parent's to handle
    main(*sys.argv[1:])
