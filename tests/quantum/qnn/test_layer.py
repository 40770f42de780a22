"""The quantum layer as torch, Opacus, jobs and ONNX Runtime see it."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qedge.errors import InvalidJob, InvalidValue, ModelError, TooManyQubits
from qedge.job import Model
from qedge.kernels.per_example.choice import LOOP, build_sums
from qedge.kernels.per_example.hooks import HookSums
from qedge.kernels.per_example.sums import LoopSums
from qedge.models import build, parameters_vector, set_parameters
from qedge.quantum.qnn.layer import QuantumLayer, hybrid_parts

FEATURES, CLASSES = 5, 3


def _hybrid(qubits: int = 3, layers: int = 2, *, reupload: bool = False, embedding: str = "ry", seed: int = 0) -> nn.Sequential:
    model = Model.model_validate({"kind": "hybrid", "qubits": qubits, "layers": layers, "reupload": reupload, "embedding": embedding})
    module = build(model, FEATURES, CLASSES, seed)
    assert isinstance(module, nn.Sequential)
    return module


def _rows(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, FEATURES, generator=generator), torch.randint(CLASSES, (rows,), generator=generator)


@settings(max_examples=15, deadline=None)
@given(
    qubits=st.integers(1, 5),
    layers=st.integers(1, 3),
    reupload=st.booleans(),
    embedding=st.sampled_from(["ry", "rx"]),
    rows=st.integers(1, 6),
    seed=st.integers(0, 2**20),
)
def test_what_opacus_is_given_for_each_example_equals_the_loop_over_examples(
    qubits: int, layers: int, reupload: bool, embedding: str, rows: int, seed: int
) -> None:
    module = _hybrid(qubits, layers, reupload=reupload, embedding=embedding, seed=seed).double()
    features, labels = _rows(rows, seed)
    sums, loop = HookSums(module), LoopSums(module)
    each = torch.cat(sums.each(features.double(), labels), dim=1)
    expected = torch.stack([loop.gradient(features[k : k + 1].double(), labels[k : k + 1]) for k in range(rows)])
    assert (each - expected).abs().max() <= 1e-10


def test_a_job_builds_the_network_that_it_describes() -> None:
    module = _hybrid(4, 2, reupload=True, embedding="rx")
    parts = hybrid_parts(module)
    assert parts is not None
    layer = parts.layer
    assert (layer.qubits, layer.layers, layer.circuit.reupload, layer.circuit.embedding) == (4, 2, True, "rx")
    assert len(parameters_vector(module)) == (FEATURES + 1) * 4 + 2 * 4 * 3 + 5 * CLASSES
    assert not list(module.buffers())
    assert "qubits=4, layers=2" in repr(module)
    assert hybrid_parts(build(Model(kind="linear"), FEATURES, CLASSES, 0)) is None


def test_a_copy_keeps_its_own_weights() -> None:
    module = _hybrid()
    twin = copy.deepcopy(module)
    set_parameters(twin, parameters_vector(twin) + 1)
    features, _ = _rows(2)
    assert not torch.allclose(module(features), twin(features))


def test_descent_learns_what_a_linear_model_cannot() -> None:
    """Exclusive or of two signs: a linear model is right on half of the rows, more or less."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = torch.sign(torch.randn(64, 2)) + 0.1 * torch.randn(64, 2)
        labels = (rows[:, 0] * rows[:, 1] > 0).long()
        module = build(Model(kind="hybrid", qubits=2, layers=2), 2, 2, 0)
        optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
        for _ in range(150):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(rows), labels).backward()
            optimiser.step()
    assert (module(rows).argmax(1) == labels).float().mean() >= 0.95


def test_bad_layers_are_refused_with_what_is_accepted() -> None:
    with pytest.raises(InvalidValue, match="at least one layer of rotations; given: 0"):
        QuantumLayer(2, 0)
    with pytest.raises(InvalidValue, match="accepted: ry, rx"):
        QuantumLayer(2, 1, embedding="amplitude")  # type: ignore[arg-type]
    with pytest.raises(TooManyQubits, match="at most 12"):
        QuantumLayer(13, 1)
    with pytest.raises(ModelError, match=r"takes \[batch, 3\] angles; given: \[2, 4\]"):
        QuantumLayer(3, 1)(torch.zeros(2, 4))
    with pytest.raises(InvalidJob, match="takes no 'qubits'"):
        Model(kind="linear", qubits=4)


_FORBIDDEN = """
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
class Forbidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(name + " is forbidden here")
sys.meta_path.insert(0, Forbidden())
import numpy as np
rows = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
folder = Path(sys.argv[1])
"""
_EXPORT = f"""
import torch
from qedge.data.federation import Schema
from qedge.export import to_onnx
from qedge.job import Model
from qedge.models import build
schema = Schema(tuple("abcde"), (0, 1, 2), "given", np.zeros({FEATURES}, np.float32), np.ones({FEATURES}, np.float32), True)
for reupload in (False, True):
    module = build(Model(kind="hybrid", qubits=6, layers=2, reupload=reupload), {FEATURES}, {CLASSES}, 0)
    to_onnx(module, schema, folder / f"{{reupload}}.onnx")
    with torch.no_grad():
        np.save(folder / f"{{reupload}}.npy", torch.softmax(module(torch.from_numpy(rows)), 1).numpy())
"""
_SERVE = """
import onnxruntime
for path in sorted(folder.glob("*.onnx")):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = np.load(path.with_suffix(".npy"))
    for many in (1, 7, 140):
        (found,) = session.run(["probabilities"], {"features": np.tile(rows, (20, 1))[:many]})
        assert abs(found - np.tile(expected, (20, 1))[:many]).max() <= 1e-5, path
print("served", len(list(folder.glob("*.onnx"))))
"""


def test_a_network_is_exported_and_served_without_any_quantum_package(tmp_path: Path) -> None:
    """A replica runs the file with torch forbidden too."""
    quantum = {"pennylane", "pennylane_lightning", "qiskit"}
    for forbidden, task in ((quantum, _EXPORT), (quantum | {"torch"}, _SERVE)):
        script = f"FORBIDDEN = {sorted(forbidden)}\n{_FORBIDDEN}{task}"
        run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "served 2"


def test_the_loop_over_examples_stays_open_to_any_model() -> None:
    module = _hybrid()
    features, labels = _rows(4)
    total = build_sums(LOOP, module).clipped_sum(torch.from_numpy(parameters_vector(module)), features, labels, 0.1)
    assert float(total.norm()) <= 0.4 * (1 + 1e-6)
    assert np.isfinite(total.numpy()).all()
