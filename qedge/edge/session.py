"""A rung as a session of ONNX Runtime, whose weights stay in the file they came in.

Weights lie beside the graph as external data and are mapped, not copied: sessions and processes share them through the page cache.
ONNX Runtime's prepacking would copy them into a layout of its own, so it is off unless the node measured that it pays.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from qedge.edge.hardware import providers
from qedge.edge.rung import Rows
from qedge.errors import EdgeError, Failed, ModelError, nearest

INPUT, OUTPUT = "features", "probabilities"
CPU = "CPUExecutionProvider"
_NOTHING = bytes.fromhex(
    "080a12003a370a100a016112016222084964656e746974791201675a0f0a0161120a0a08080112040a020801620f0a0162120a0a08080112040a02080142040a001014"
)  # a graph: b = Identity(a), opset 20
_KEPT_BATCHES = 8  # buffers of so many batch sizes are kept for each thread
ORT_ERRORS: tuple[type[Exception], ...] = (
    runtime.EPFail,
    runtime.EngineError,
    runtime.Fail,
    runtime.InvalidArgument,
    runtime.InvalidGraph,
    runtime.InvalidProtobuf,
    runtime.NoSuchFile,
    runtime.NotImplemented,
    runtime.RuntimeException,
)

_NOT_LOADED: tuple[type[Exception], ...] = (*ORT_ERRORS, MemoryError)
_NOT_RUN: tuple[type[Exception], ...] = (*ORT_ERRORS, RuntimeError)  # bound runs raise the latter


@dataclass(frozen=True)
class _Bound:
    """Buffers for one batch size, bound to input and output."""

    binding: onnxruntime.IOBinding
    rows: Rows
    answers: Rows


class OnnxRunner:
    """A `Runner` of an ONNX graph with one input `features` [batch, F] and an output `probabilities` [batch, classes]."""

    def __init__(self, session: onnxruntime.InferenceSession, features: int, classes: int) -> None:
        self.session, self._features, self._classes = session, features, classes
        self._own = threading.local()

    @classmethod
    def load(cls, path: Path, *, threads: int = 1, prepacked: bool = False, provider: str = CPU) -> OnnxRunner:
        """The session of the graph at `path`, whose external data lie beside it.

        Raises:
            EdgeError: this machine has no such execution provider.
            ModelError: ONNX Runtime cannot load it, or has no memory for it, or it is not of that form.
        """
        refuse_provider(provider)
        try:
            session = onnxruntime.InferenceSession(str(path), options(threads, prepacked), providers=[provider])
            if provider not in session.get_providers():  # it falls back to the processor and merely warns
                raise ModelError(f"{path.name}: {provider} cannot be used here", path=path.name)
        except _NOT_LOADED as error:
            raise ModelError(f"{path.name}: ONNX Runtime cannot load the rung: {error}", path=path.name) from None
        shapes = {node.name: node.shape for node in (*session.get_inputs(), *session.get_outputs())}
        taken, given = shapes.get(INPUT, []), shapes.get(OUTPUT, [])
        if len(session.get_inputs()) != 1 or [type(step) for step in (*taken[1:], *given[1:])] != [int, int]:
            raise ModelError(f"{path.name}: accepted: one input {INPUT} [batch, F] and an output {OUTPUT} [batch, classes]", path=path.name)
        return cls(session, taken[1], given[1])

    def run(self, rows: Rows) -> Rows:
        """See `Runner.run`."""
        bound = self._bound(len(rows))
        bound.rows[:] = rows
        try:
            self.session.run_with_iobinding(bound.binding)
        except _NOT_RUN as error:
            raise Failed(f"ONNX Runtime could not run the rung: {error}") from None
        return bound.answers

    def close(self) -> None:
        """See `Runner.close`; buffers of other threads go with those."""
        del self.session
        self._own = threading.local()

    def _bound(self, batch: int) -> _Bound:
        pool: dict[int, _Bound] | None = getattr(self._own, "pool", None)
        if pool is None:
            pool = self._own.pool = {}
        bound = pool.get(batch)
        if bound is None:
            if len(pool) == _KEPT_BATCHES:
                del pool[next(iter(pool))]
            bound = pool[batch] = self._bind(batch)
        return bound

    def _bind(self, batch: int) -> _Bound:
        rows, answers = np.empty((batch, self._features), np.float32), np.empty((batch, self._classes), np.float32)
        binding = self.session.io_binding()
        binding.bind_input(INPUT, "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
        binding.bind_output(OUTPUT, "cpu", 0, np.float32, answers.shape, answers.ctypes.data)
        return _Bound(binding, rows, answers)


def refuse_provider(name: str) -> None:
    """Refuse an execution provider that does not compute here.

    Raises:
        EdgeError: this machine has none of that name.
    """
    known = providers()
    if name not in known:
        raise EdgeError(f"this machine has no execution provider '{name}'; {nearest(name, known)}", given=name, expected=list(known))


def warm_up() -> None:
    """Make a session of a graph that does nothing: what ONNX Runtime sets up once for a process is set up then."""
    onnxruntime.InferenceSession(_NOTHING, options(1, False), providers=[CPU])


def options(threads: int, prepacked: bool) -> onnxruntime.SessionOptions:
    """How a session is made: with so many threads that do not spin, and with weights as they lie in the file unless prepacked."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = 4  # its errors are raised
    if not prepacked:
        chosen.add_session_config_entry("session.disable_prepacking", "1")
    if threads > 1:
        chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return chosen
