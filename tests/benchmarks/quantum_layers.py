"""A step of a quantum layer beside PennyLane's, the price of its privacy, and its ONNX file.

A step is the forward pass of 32 rows through angles, three layers of Rot and a CNOT ring, and the gradient with respect to inputs and
weights. PennyLane's is a `TorchLayer` of the same circuit, on `default.qubit` by backpropagation and on `lightning.qubit` by its adjoint
method. Each runs at its default precision: ours in float32, theirs computes in complex128 whatever it is given; ours in float64, where the
gradients are compared, stands beside. One thread, by the thread's own clock, the ways taking turns; a ratio is of medians.

A private step is of a hybrid model (64 features, 10 classes) with book-keeping: every row's gradient clipped, their sum, and the SGD
step; the plain one is autograd's gradient of the batch and the SGD step. Single rows' gradients are compared with the loop over rows in
float64. The ONNX file is asked the same 100 rows as the module.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pennylane as qml
import torch
from torch import nn
from torch.nn import functional

from qedge.data.federation import Schema
from qedge.export import to_onnx
from qedge.job import Model
from qedge.kernels.batches import single_thread
from qedge.kernels.per_example.choice import BOOK_KEEPING, HOOKS, build_sums
from qedge.kernels.per_example.hooks import HookSums
from qedge.kernels.per_example.sums import LoopSums
from qedge.models import build, parameters_vector
from qedge.quantum.qnn.layer import QuantumLayer
from tests.benchmarks.figures import Figure, at_least, at_most, beside, never_more

REPEAT = 3
ROWS, LAYERS, FEATURES, CLASSES = 32, 3, 64, 10
REACH = {"default.qubit": 5, "lightning.qubit": 50}
_TURNS = 5
Way = Callable[[], object]


def measure(repeat: int) -> list[Figure]:
    """`repeat` measurements of every way at 4, 6 and 8 qubits."""
    figures: list[Figure] = []
    with single_thread():
        for qubits in (4, 6, 8):
            figures += _steps(qubits, repeat)
            figures += _private(qubits, repeat)
        figures += _served()
    return figures


def _steps(qubits: int, repeat: int) -> list[Figure]:
    ours, exact = QuantumLayer(qubits, LAYERS), QuantumLayer(qubits, LAYERS).double()
    angles = torch.randn(ROWS, qubits, generator=torch.Generator().manual_seed(qubits), dtype=torch.float64)
    peers = {name: _torch_layer(name, qubits) for name in REACH}
    with torch.no_grad():
        exact.weights.copy_(ours.weights)
        for peer in peers.values():
            peer.weights.copy_(ours.weights)
    ways = {"ours": _step(ours, angles.float()), "ours in float64": _step(exact, angles)}
    ways |= {name: _step(peer, angles.float()) for name, peer in peers.items()}
    found = [_seconds(ways) for _ in range(repeat)]
    figures = []
    for name, reach in REACH.items():
        ratios = [one[name] / one["ours"] for one in found]
        figures.append(at_least(f"{qubits} qubits: TorchLayer on {name} over ours", reach, ratios, "times"))
    figures += [beside(f"… {name}", [1000 * one[name] for one in found], "ms a step") for name in ways]
    apart = [_difference(exact, peer.double(), angles) for peer in peers.values()]
    figures.append(never_more(f"{qubits} qubits: largest difference of a gradient in float64", 1e-10, apart))
    return figures


def _torch_layer(name: str, qubits: int) -> nn.Module:
    method = "backprop" if name == "default.qubit" else "adjoint"

    @qml.qnode(qml.device(name, wires=qubits), diff_method=method, interface="torch")
    def circuit(inputs: torch.Tensor, weights: torch.Tensor) -> list[object]:
        qml.AngleEmbedding(inputs, range(qubits), rotation="Y")
        qml.StronglyEntanglingLayers(weights, range(qubits), ranges=[1] * LAYERS)
        return [qml.expval(qml.Z(wire)) for wire in range(qubits)]

    layer: nn.Module = qml.qnn.TorchLayer(circuit, {"weights": (LAYERS, qubits, 3)})
    return layer


def _step(layer: nn.Module, angles: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
    inputs = angles.clone().requires_grad_()
    slope = torch.linspace(-1, 1, inputs.shape[1], dtype=angles.dtype)
    return lambda: torch.autograd.grad((layer(inputs) * slope).sum(), (inputs, *layer.parameters()))


def _difference(layer: nn.Module, peer: nn.Module, angles: torch.Tensor) -> float:
    """The largest between two layers' gradients. PennyLane rounds those of a device's own method to torch's default precision."""
    torch.set_default_dtype(torch.float64)
    try:
        ours, theirs = _step(layer, angles)(), _step(peer, angles)()
    finally:
        torch.set_default_dtype(torch.float32)
    return max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))


def _private(qubits: int, repeat: int) -> list[Figure]:
    module = build(Model(kind="hybrid", qubits=qubits, layers=LAYERS), FEATURES, CLASSES, 0)
    generator = np.random.default_rng(qubits)
    rows = torch.from_numpy(generator.standard_normal((ROWS, FEATURES), dtype=np.float32))
    labels = torch.from_numpy(generator.integers(0, CLASSES, ROWS))
    weights = torch.from_numpy(parameters_vector(module))
    own, hooks = build_sums(BOOK_KEEPING, module), build_sums(HOOKS, module)

    def plain() -> None:
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(functional.cross_entropy(module(rows), labels), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=1e-9)

    ways: dict[str, Way] = {
        "plain": plain,
        "private": lambda: weights.sub_(own.clipped_sum(weights, rows, labels, 1.0), alpha=1e-9),
        "private by Opacus' hooks": lambda: weights.sub_(hooks.clipped_sum(weights, rows, labels, 1.0), alpha=1e-9),
    }
    found = [_seconds(ways) for _ in range(repeat)]
    what = f"{qubits} qubits, hybrid model"
    return [
        at_most(f"{what}: a private step over a plain one", 2, [one["private"] / one["plain"] for one in found], "times"),
        *(beside(f"… {name}", [1000 * one[name] for one in found], "ms a step") for name in ways),
        never_more(f"{what}: largest difference from the loop over rows, in float64", 1e-10, _from_the_loop(module, rows, labels)),
    ]


def _from_the_loop(module: nn.Module, rows: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Of single rows' gradients as the hooks get them, and of the clipped sum by book-keeping."""
    module, rows = module.double(), rows.double()
    loop, hooks = LoopSums(module), HookSums(module)
    expected = torch.stack([loop.gradient(rows[k : k + 1], labels[k : k + 1]) for k in range(len(labels))])
    each = torch.cat(hooks.each(rows, labels), dim=1)
    weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    bound = float(expected.norm(dim=1).median())
    sums = build_sums(BOOK_KEEPING, module).clipped_sum(weights, rows, labels, bound)
    return [float((each - expected).abs().max()), float((sums - loop.clipped_sum(weights, rows, labels, bound)).abs().max())]


def _served() -> list[Figure]:
    module = build(Model(kind="hybrid", qubits=6, layers=LAYERS), FEATURES, CLASSES, 0)
    names, zero = tuple(f"x{k}" for k in range(FEATURES)), np.zeros(FEATURES, np.float32)
    schema = Schema(names, tuple(range(CLASSES)), "given", zero, zero + 1, True)
    rows = np.random.default_rng(0).standard_normal((100, FEATURES), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        to_onnx(module, schema, path)
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {"features": rows})
    with torch.no_grad():
        expected = torch.softmax(module(torch.from_numpy(rows)), dim=1).numpy()
    return [never_more("6 qubits: largest difference of a probability from ONNX Runtime", 1e-5, [float(np.abs(found - expected).max())])]


def _seconds(ways: dict[str, Way]) -> dict[str, float]:
    """Median seconds of a step, the ways taking turns, slow ones fewer; the first turn does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(_TURNS + 1):
        for name, way in ways.items():
            begun, steps = time.thread_time(), 0
            while not steps or (time.thread_time() - begun < 0.02 and steps < 20):
                way()
                steps += 1
            if turn:
                taken[name].append((time.thread_time() - begun) / steps)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
