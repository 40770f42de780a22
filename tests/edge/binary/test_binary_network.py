"""The packed network equals its torch reference bit for bit; its file gives it back; whoever asks, however many at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from qedge.edge.binary.architecture import Architecture, Layer
from qedge.edge.binary.module import BinaryModule, pack
from qedge.edge.binary.network import BinaryNetwork
from qedge.errors import InvalidRequest, UnfitGraph
from tests.edge.binary.binary_networks import architectures, random_module, random_rows, reference

MLP = Architecture((1, 1, 100), (Layer(130), Layer(70)), 10)
CNN = Architecture((1, 12, 12), (Layer(8, (3, 3), pads=(1, 1, 1, 1), pool=(2, 2), pool_stride=(2, 2)), Layer(16, (3, 3))), 5)
SEEDS = st.integers(0, 2**16)


@settings(max_examples=150)
@given(architecture=architectures(), bits=st.integers(1, 8), batch=st.integers(0, 5), seed=SEEDS)
def test_the_packed_network_equals_torch_bit_for_bit(architecture: Architecture, bits: int, batch: int, seed: int) -> None:
    module = random_module(architecture, bits, seed)
    rows = random_rows(module, batch, seed)
    answers = pack(module).run(rows)
    assert answers.dtype == np.float32
    np.testing.assert_array_equal(answers.view(np.uint32), reference(module, rows).view(np.uint32))


@pytest.mark.parametrize("architecture", [MLP, CNN], ids=["mlp", "cnn"])
def test_a_row_is_answered_the_same_in_every_batch(architecture: Architecture) -> None:
    module = random_module(architecture, 3, 1)
    network, rows = pack(module), random_rows(module, 40, 2)
    np.testing.assert_array_equal(network.run(rows), np.concatenate([network.run(rows[k : k + 1]) for k in range(40)]))


@pytest.mark.parametrize("architecture", [MLP, CNN], ids=["mlp", "cnn"])
def test_whole_numbers_answer_as_batch_normalisation_and_sign_do(architecture: Architecture) -> None:
    """The reference itself, against the floats that it was folded from, in float64 and without any of its code."""
    module = random_module(architecture, 2, 3)
    rows = random_rows(module, 50, 4)
    rows[~np.isfinite(rows)] = 0
    np.testing.assert_allclose(reference(module, rows), _by_floats(module, torch.from_numpy(rows)), atol=1e-6)


def _by_floats(module: BinaryModule, rows: torch.Tensor) -> np.ndarray:
    low, unit = (torch.from_numpy(one) for one in module.encoding.ranges)
    most = 2**module.encoding.bits - 1
    values = (2 * torch.round(((rows - low) * unit).clamp(0, most)).double() - most) / most
    values = values.reshape(len(rows), *module.architecture.image)
    for layer, weight, norm in zip(module.architecture.layers, module.weights, module.norms, strict=False):
        signs = torch.where(weight >= 0, 1.0, -1.0).double()
        if layer.kernel is None:
            values = functional.linear(values.flatten(1), signs)[:, :, None, None]
        else:
            top, left, bottom, right = layer.pads
            values = functional.conv2d(functional.pad(values, (left, right, top, bottom), value=-1), signs, stride=layer.stride)
        norm = norm.double()
        scaled = functional.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        values = torch.where(functional.max_pool2d(scaled, layer.pool, layer.pool_stride) >= 0, 1.0, -1.0).double()
    levels = 2**module.architecture.weight_bits - 1
    weight = 2 * torch.round((module.weights[-1].clamp(-1, 1) + 1) / 2 * levels).double() / levels - 1
    answers: np.ndarray = torch.softmax(functional.linear(values.flatten(1), weight) * module.scale + module.bias, 1).detach().numpy()
    return answers


@settings(max_examples=25)
@given(architecture=architectures(), bits=st.integers(1, 8), seed=SEEDS)
def test_a_saved_network_answers_as_before(
    architecture: Architecture, bits: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    network = pack(module := random_module(architecture, bits, seed))
    path = tmp_path_factory.mktemp("saved") / "binary.npz"
    network.save(path)
    before = path.read_bytes()
    loaded = BinaryNetwork.load(path)
    loaded.save(path)
    assert path.read_bytes() == before
    rows = random_rows(module, 3, seed)
    assert (loaded.architecture, loaded.features, loaded.classes) == (architecture, architecture.features, architecture.classes)
    np.testing.assert_array_equal(loaded.run(rows), network.run(rows))


def test_many_threads_get_the_answers_that_one_gets() -> None:
    module = random_module(CNN, 2, 5)
    network, rows = pack(module), random_rows(module, 400, 6)
    expected, wrong = network.run(rows), []

    def ask(first: int) -> None:
        for turn in range(60):
            begin = (first + 7 * turn) % 390
            if not np.array_equal(network.run(rows[begin : begin + 10]), expected[begin : begin + 10]):
                wrong.append(begin)

    threads = [threading.Thread(target=ask, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_rows_may_be_read_only_strided_or_of_another_type() -> None:
    module = random_module(MLP, 2, 7)
    network, rows = pack(module), random_rows(module, 6, 8)
    rows[~np.isfinite(rows)] = 0
    expected = network.run(rows)
    fixed = rows.copy()
    fixed.flags.writeable = False
    for given_ in (fixed, np.asfortranarray(rows), np.repeat(rows, 2, axis=0)[::2], rows.astype(np.float64)):
        np.testing.assert_array_equal(network.run(given_), expected)


def test_a_row_with_what_is_no_number_is_answered_with_nan_and_the_others_as_ever() -> None:
    module = random_module(MLP, 2, 9)
    network, rows = pack(module), random_rows(module, 3, 10)
    expected = network.run(rows)
    rows[1, 50] = np.nan
    found = network.run(rows)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
    np.testing.assert_array_equal(found, reference(module, rows))


@pytest.mark.parametrize("shape", [(3, 99), (3, 101), (100,), (1, 1, 100)])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    network = pack(random_module(MLP, 1, 0))
    with pytest.raises(InvalidRequest, match=r"accepted: \[batch, 100\]"):
        network.run(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("image", "layers", "classes"),
    [
        ((1, 1, 4), (), 1),
        ((0, 1, 4), (), 2),
        ((1, 1, 4), (Layer(0),), 2),
        ((1, 1, 4), (Layer(8, stride=(2, 1)),), 2),
        ((1, 4, 4), (Layer(8, (5, 5)),), 2),
        ((1, 4, 4), (Layer(8, (3, 3), pads=(3, 0, 0, 0)),), 2),
        ((1, 4, 4), (Layer(8, (3, 3), pool=(3, 3)),), 2),
        ((1, 4, 4), (Layer(8, (3, 3), stride=(0, 1)),), 2),
        ((1, 2**12, 2**12), (Layer(2**12),), 2),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(image: tuple[int, int, int], layers: tuple[Layer, ...], classes: int) -> None:
    with pytest.raises(UnfitGraph):
        Architecture(image, layers, classes)


def test_a_network_is_served_without_torch_or_onnx(tmp_path: Path) -> None:
    pack(random_module(MLP, 2, 0)).save(tmp_path / "binary.npz")
    script = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom qedge.edge.binary.network import BinaryNetwork\n"
        f"BinaryNetwork.load(Path({str(tmp_path / 'binary.npz')!r})).run(np.zeros((2, 100), np.float32))\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'mlflow', 'pennylane', 'ray'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
