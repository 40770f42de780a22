"""The stacked kernel against the sequential oracle, and what both promise about bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import ModelError
from qedge.federated.randomness import RunKey
from qedge.job import Algorithm, Model
from qedge.kernels.batches import ClientBatches, Kernel, LocalSGD, plan, single_thread, steps_of
from qedge.kernels.choice import build_kernel, choose_kernel
from qedge.kernels.sequential import SequentialKernel
from qedge.kernels.stacked import StackedKernel
from qedge.models import affine_layers, build, parameters_vector, set_parameters
from qedge.privacy.clipping import Grid, to_grid


def _algorithm(**values: object) -> Algorithm:
    return Algorithm.model_validate(values)


def _chunk(sizes: list[int], algorithm: Algorithm, features: int, classes: int, seed: int) -> list[ClientBatches]:
    generator = np.random.default_rng(seed)
    return [
        plan(
            generator.standard_normal((rows, features), dtype=np.float32),
            generator.integers(0, classes, rows),
            algorithm,
            RunKey.from_seed(seed + 1 + k).generator,
        )
        for k, rows in enumerate(sizes)
    ]


def _train(kernel: Kernel, weights: np.ndarray, chunk: list[ClientBatches], corrections: np.ndarray | None = None) -> np.ndarray:
    return kernel.updates(weights, kernel.prepare(chunk), corrections).values


@settings(max_examples=60, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 24), max_size=3),
    features=st.integers(1, 20),
    classes=st.integers(2, 7),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=9),
    batch_size=st.one_of(st.none(), st.integers(1, 48)),
    epochs=st.integers(1, 4),
    rate=st.floats(0.001, 0.5),
    shuffle=st.booleans(),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    proximal=st.sampled_from([0.0, 0.5]),
    corrected=st.booleans(),
    body=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_stacked_equals_the_sequential_oracle(
    hidden, features, classes, sizes, batch_size, epochs, rate, shuffle, momentum, weight_decay, proximal, corrected, body, seed
):
    model = Model(kind="mlp", hidden=hidden) if hidden else Model(kind="linear")
    algorithm = _algorithm(batch_size=batch_size, local_epochs=epochs, learning_rate=rate, shuffle=shuffle)
    module = build(model, features, classes, seed)
    weights = parameters_vector(module)
    chunk = _chunk(sizes, algorithm, features, classes, seed)
    layers = affine_layers(module)
    assert layers is not None
    apart_from_the_head = body and bool(hidden) and not corrected  # whoever corrects trains all
    sgd = LocalSGD(rate * (1 - momentum), momentum, weight_decay, proximal, layers="body" if apart_from_the_head else "all")
    corrections = np.random.default_rng(seed).normal(0, 0.1, (len(sizes), len(weights))).astype(np.float32) if corrected else None
    slow = _train(SequentialKernel(module, sgd), weights, chunk, corrections)
    fast = _train(StackedKernel(layers, sgd), weights, chunk, corrections)
    # A ReLU whose input is within rounding of zero may open in one and not in the other: that says nothing of the kernel.
    apart = np.abs(slow - fast).max(axis=1)
    assert np.median(apart) <= 1e-6
    scale = max(1.0, float(np.abs(slow).max()))
    assert (apart > 1e-6 * scale).sum() <= 1
    assert apart.max() <= 0.02 * scale


@settings(max_examples=40, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 24), max_size=2),
    sizes=st.lists(st.integers(0, 30), min_size=2, max_size=12),
    batch_size=st.integers(1, 16),
    seed=st.integers(0, 2**20),
    data=st.data(),
)
def test_under_privacy_emptying_one_client_moves_no_bit_of_anothers_integers(hidden, sizes, batch_size, seed, data):
    whole, rest = _integers_of_others(hidden, sizes, batch_size, seed, data.draw(st.integers(0, len(sizes) - 1)))
    assert (whole == rest).all()


@pytest.mark.parametrize("seed", range(60))
def test_under_privacy_emptying_one_client_moves_no_bit_of_anothers_updates(seed):
    """Of 60 chunks: with torch's own softmax a processor with AVX-512 gave two of five of them other bits."""
    draw = np.random.default_rng(seed)
    hidden, sizes = draw.integers(1, 40, draw.integers(1, 3)).tolist(), draw.integers(1, 30, draw.integers(2, 8)).tolist()
    algorithm = _algorithm(batch_size=int(draw.integers(1, 17)), local_epochs=2, learning_rate=0.2, kernel="stacked")
    module = build(Model(kind="mlp", hidden=hidden), 9, 4, seed)
    kernel = build_kernel("stacked", module, algorithm, LocalSGD(algorithm.learning_rate), 9, 4, private=True)
    chunk, emptied = _chunk(sizes, algorithm, 9, 4, seed), int(draw.integers(len(sizes)))
    without = [ClientBatches(c.features[:0], c.labels[:0], c.steps[:0, :0]) if k == emptied else c for k, c in enumerate(chunk)]
    whole, rest = (_train(kernel, parameters_vector(module), some) for some in (chunk, without))
    others = [k for k in range(len(sizes)) if k != emptied]
    assert whole[others].tobytes() == rest[others].tobytes()


def _integers_of_others(hidden, sizes, batch_size, seed, emptied):
    """Those of every client but one, with that one's rows and without."""
    model = Model(kind="mlp", hidden=hidden) if hidden else Model(kind="linear")
    algorithm = _algorithm(batch_size=batch_size, local_epochs=2, learning_rate=0.2, kernel="stacked")
    module = build(model, 9, 4, seed)
    weights = parameters_vector(module)
    kernel = build_kernel("stacked", module, algorithm, LocalSGD(algorithm.learning_rate), 9, 4, private=True)
    grid = Grid(0.5, len(weights))

    def integers(chunk: list[ClientBatches]) -> np.ndarray:
        rounding = RunKey.from_seed(seed)
        return to_grid(_train(kernel, weights, chunk), grid, rounding.generator(), lambda row: rounding.derive("again", row).generator())

    chunk = _chunk(sizes, algorithm, 9, 4, seed)
    without = [ClientBatches(c.features[:0], c.labels[:0], c.steps[:0, :0]) if k == emptied else c for k, c in enumerate(chunk)]
    others = [k for k in range(len(sizes)) if k != emptied]
    return integers(chunk)[others], integers(without)[others]


@pytest.mark.parametrize(("features", "hidden", "classes"), [(64, (), 10), (64, (32,), 10), (784, (128,), 10), (30, (), 2)])
@pytest.mark.parametrize("sizes", [[20, 20], [16] * 15 + [17], [70, 200, 300], [30, 60, 100, 10, 5, 250]])
@pytest.mark.parametrize("batch_size", [16, 64, None])
def test_nor_does_it_at_the_shapes_that_are_used(features, hidden, classes, sizes, batch_size):
    """Larger products take other paths through a linear algebra library; a stack of two becomes one, one of sixteen fifteen."""
    algorithm = _algorithm(batch_size=batch_size, local_epochs=1, learning_rate=0.1, kernel="stacked")
    module = build(Model(kind="mlp", hidden=hidden) if hidden else Model(kind="linear"), features, classes, 0)
    kernel = build_kernel("stacked", module, algorithm, LocalSGD(0.1), features, classes, private=True)
    weights, chunk = parameters_vector(module), _chunk(sizes, algorithm, features, classes, 1)
    with single_thread():
        whole = _train(kernel, weights, chunk)
        for emptied in (0, len(sizes) - 1):
            without = [ClientBatches(c.features[:0], c.labels[:0], c.steps[:0, :0]) if k == emptied else c for k, c in enumerate(chunk)]
            others = [k for k in range(len(sizes)) if k != emptied]
            assert _train(kernel, weights, without)[others].tobytes() == whole[others].tobytes()


def test_one_linear_step_equals_the_gradient_written_by_hand():
    features, labels = np.array([[1.0, 2.0]], dtype=np.float32), np.array([1])
    weights = np.zeros(6, dtype=np.float32)  # weight [2 classes, 2 features], then bias [2]
    chunk = [ClientBatches(features, labels, np.array([[0]]))]
    update = _train(StackedKernel([(2, 2)], LocalSGD(1.0)), weights, chunk)[0]
    # softmax(0, 0) - onehot(1) = (1/2, -1/2); gradient of the weight is its outer product with the row.
    np.testing.assert_allclose(update, [-0.5, -1.0, 0.5, 1.0, -0.5, 0.5], atol=1e-7)


@pytest.mark.parametrize("kernel", ["stacked", "sequential"])
def test_a_client_without_rows_changes_nothing(kernel):
    algorithm = _algorithm(kernel=kernel)
    module = build(Model(kind="mlp", hidden=(4,)), 3, 2, 0)
    chunk = _chunk([0, 5], algorithm, 3, 2, 0)
    updates = _train(
        build_kernel(kernel, module, algorithm, LocalSGD(algorithm.learning_rate), 9, 4, private=False), parameters_vector(module), chunk
    )
    assert not updates[0].any()
    assert updates[1].any()


@pytest.mark.parametrize("kernel", ["stacked", "sequential"])
def test_the_same_chunk_gives_the_same_bits_from_read_only_weights(kernel):
    algorithm = _algorithm(kernel=kernel, batch_size=4, local_epochs=2)
    module = build(Model(kind="mlp", hidden=(8,)), 6, 3, 0)
    weights = parameters_vector(module)
    weights.flags.writeable = False
    chunk = _chunk([7, 3, 9], algorithm, 6, 3, 1)
    first = _train(build_kernel(kernel, module, algorithm, LocalSGD(algorithm.learning_rate), 9, 4, private=False), weights, chunk)
    second = _train(
        build_kernel(kernel, build(Model(kind="mlp", hidden=(8,)), 6, 3, 5), algorithm, LocalSGD(0.1), 6, 3, private=False), weights, chunk
    )
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.01), (0.0, 0.1)])
def test_the_oracle_steps_as_torchs_own_optimiser_does(momentum, weight_decay):
    algorithm = _algorithm(batch_size=4, local_epochs=3, shuffle=False)
    module = build(Model(kind="mlp", hidden=(6,)), 5, 3, 0)
    weights, (client,) = parameters_vector(module), _chunk([11], algorithm, 5, 3, 0)
    update = _train(SequentialKernel(module, LocalSGD(0.1, momentum, weight_decay)), weights, [client])[0]
    set_parameters(module, weights)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay)
    for step in client.steps:
        chosen = step[step >= 0]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(
            module(torch.from_numpy(client.features[chosen])), torch.from_numpy(client.labels[chosen])
        ).backward()
        optimiser.step()
    np.testing.assert_allclose(weights + update, parameters_vector(module), atol=1e-6)


@given(
    rows=st.integers(0, 300),
    size=st.one_of(st.none(), st.integers(1, 50)),
    epochs=st.integers(1, 5),
    cap=st.integers(1, 100),
    most=st.integers(1, 40),
)
def test_the_number_of_steps_is_known_without_a_plan(rows, size, epochs, cap, most):
    algorithm = _algorithm(batch_size=size, local_epochs=epochs, max_rows=cap, max_steps=most)
    planned = plan(np.zeros((rows, 1), dtype=np.float32), np.zeros(rows, dtype=np.int64), algorithm, RunKey.from_seed(0).generator)
    assert steps_of(rows, algorithm) == len(planned.steps)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 200), size=st.integers(1, 50), epochs=st.integers(1, 5), cap=st.integers(1, 100), most=st.integers(1, 40))
def test_steps_keep_the_public_caps_and_see_each_row_once_an_epoch(rows, size, epochs, cap, most):
    algorithm = _algorithm(batch_size=size, local_epochs=epochs, max_rows=cap, max_steps=most)
    numbered = np.arange(rows, dtype=np.float32)[:, None]
    planned = plan(numbered, np.arange(rows), algorithm, RunKey.from_seed(0).generator)
    steps = [planned.labels[step[step >= 0]] for step in planned.steps]
    assert (planned.features[:, 0] == planned.labels).all()
    assert len(steps) <= most
    assert all(1 <= len(step) <= size for step in steps)
    seen = [row for step in steps for row in step]
    assert len(set(seen)) <= cap
    per_epoch = -(-min(rows, cap) // size)
    if rows and len(steps) >= per_epoch:
        first = [row for step in steps[:per_epoch] for row in step]
        assert len(first) == len(set(first)) == min(rows, cap)


def test_auto_finds_the_convolutional_kernel_faster_on_a_small_cnn_and_refuses_to_stack_it():
    module = build(Model(kind="cnn"), 64, 10, 0)
    assert choose_kernel(module, _algorithm(batch_size=16), LocalSGD(0.1), 64, 10, 4, private=True) == "convolutional"
    with pytest.raises(ModelError, match="sequential"):
        choose_kernel(module, _algorithm(kernel="stacked"), LocalSGD(0.1), 64, 10, 4, private=False)


def test_auto_finds_the_stacked_kernel_faster_on_a_small_mlp():
    module = build(Model(kind="mlp", hidden=(32,)), 64, 10, 0)
    assert choose_kernel(module, _algorithm(batch_size=16), LocalSGD(0.1), 64, 10, 25, private=False) == "stacked"


def test_training_a_cnn_lowers_its_loss_on_its_own_rows():
    algorithm = _algorithm(local_epochs=25, batch_size=8, learning_rate=0.2)
    module = build(Model(kind="cnn"), 64, 3, 0)
    weights = parameters_vector(module)
    chunk = _chunk([24], algorithm, 64, 3, 3)
    after = weights + _train(SequentialKernel(module, LocalSGD(0.2)), weights, chunk)[0]
    losses = []
    for vector in (weights, after):
        module.eval()
        set_parameters(module, vector.astype(np.float32))
        with torch.no_grad():
            outputs = module(torch.from_numpy(chunk[0].features))
            losses.append(float(torch.nn.functional.cross_entropy(outputs, torch.from_numpy(chunk[0].labels))))
    assert losses[1] < losses[0] / 2
