"""The stacked kernel and the clipped sums of hybrid models against their oracles, and what a client's bits depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.federated.randomness import RunKey
from qedge.job import Algorithm, Model
from qedge.kernels.batches import ClientBatches, LocalSGD, plan, single_thread
from qedge.kernels.choice import build_kernel, kernels_for
from qedge.kernels.hybrid import StackedHybridKernel
from qedge.kernels.per_example.choice import BOOK_KEEPING, choose_sums
from qedge.kernels.per_example.hybrid import HybridSums
from qedge.kernels.per_example.sums import LoopSums
from qedge.kernels.sequential import SequentialKernel
from qedge.models import build, parameters_vector

FEATURES, CLASSES = 6, 3


def _model(qubits: int, layers: int, *, reupload: bool = False) -> Model:
    return Model(kind="hybrid", qubits=qubits, layers=layers, reupload=reupload)


def _chunk(sizes: list[int], features: int, classes: int, seed: int, batch: int | None = 4, epochs: int = 2) -> list[ClientBatches]:
    algorithm, generator = Algorithm(batch_size=batch, local_epochs=epochs, max_steps=4), np.random.default_rng(seed)
    return [
        plan(
            generator.standard_normal((rows, features), dtype=np.float32),
            generator.integers(0, classes, rows),
            algorithm,
            RunKey.from_seed(seed + 1 + k).generator,
        )
        for k, rows in enumerate(sizes)
    ]


@settings(max_examples=20, deadline=None)
@given(
    qubits=st.integers(1, 5),
    layers=st.integers(1, 3),
    reupload=st.booleans(),
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6),
    batch=st.one_of(st.none(), st.integers(1, 9)),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    proximal=st.sampled_from([0.0, 0.5]),
    apart=st.booleans(),
    corrected=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_stacked_clients_equal_the_sequential_oracle(
    qubits, layers, reupload, sizes, batch, momentum, weight_decay, proximal, apart, corrected, seed
):
    """At most four small steps, so that what float32 leaves open in the order of a sum does not grow."""
    module = build(_model(qubits, layers, reupload=reupload), FEATURES, CLASSES, seed)
    sgd = LocalSGD(0.02, momentum, weight_decay, proximal)
    kernel = StackedHybridKernel.of(module, sgd, apart=apart)
    assert kernel is not None
    weights, chunk = parameters_vector(module), _chunk(sizes, FEATURES, CLASSES, seed, batch)
    corrections = np.random.default_rng(seed).standard_normal((len(sizes), len(weights)), dtype=np.float32) * 0.1 if corrected else None
    slow = SequentialKernel(module, sgd).updates(weights, chunk, corrections).values
    fast = kernel.updates(weights, kernel.prepare(chunk), corrections).values
    np.testing.assert_allclose(fast, slow, atol=2e-6 * max(1.0, np.abs(slow).max()), rtol=0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("qubits", [3, 6])
def test_under_privacy_emptying_one_client_moves_no_bit_of_anothers_updates(qubits, seed):
    draw = np.random.default_rng(seed)
    features, classes = (64, 10) if seed % 2 else (9, 4)
    sizes = draw.integers(1, 30, draw.integers(2, 8)).tolist() if seed % 4 else [int(draw.integers(1, 6))] * 33
    algorithm = Algorithm(batch_size=16, kernel="stacked")
    module = build(_model(qubits, 1 + seed % 3, reupload=seed % 5 == 4), features, classes, seed)
    kernel = build_kernel("stacked", module, algorithm, LocalSGD(0.5), features, classes, private=True)
    chunk, emptied, weights = _chunk(sizes, features, classes, seed, 16), int(draw.integers(len(sizes))), parameters_vector(module)
    without = [ClientBatches(c.features[:0], c.labels[:0], c.steps[:0, :0]) if k == emptied else c for k, c in enumerate(chunk)]
    with single_thread():
        whole, rest = (kernel.updates(weights, kernel.prepare(some)).values for some in (chunk, without))
    others = [k for k in range(len(sizes)) if k != emptied]
    assert whole[others].tobytes() == rest[others].tobytes()


def test_which_kernels_train_a_hybrid_model():
    module, sgd = build(_model(3, 1), FEATURES, CLASSES, 0), LocalSGD(0.1)
    for private in (False, True):
        assert set(kernels_for(module, Algorithm(), sgd, FEATURES, CLASSES, private=private)) == {"sequential", "stacked"}
    body = kernels_for(module, Algorithm(), LocalSGD(0.1, layers="body"), FEATURES, CLASSES, private=False)
    assert set(body) == {"sequential"}
    assert choose_sums(module, Algorithm(), FEATURES, CLASSES) == BOOK_KEEPING


@settings(max_examples=25, deadline=None)
@given(
    qubits=st.integers(1, 5),
    layers=st.integers(1, 3),
    reupload=st.booleans(),
    rows=st.integers(0, 9),
    bound=st.floats(1e-3, 10),
    seed=st.integers(0, 2**20),
)
def test_clipped_sums_equal_the_loop_over_examples(qubits, layers, reupload, rows, bound, seed):
    module = build(_model(qubits, layers, reupload=reupload), FEATURES, CLASSES, seed).double()
    generator = np.random.default_rng(seed)
    features, labels = torch.tensor(generator.standard_normal((rows, FEATURES))), torch.tensor(generator.integers(0, CLASSES, rows))
    weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    sums = HybridSums.of(module)
    assert sums is not None
    found = sums.clipped_sum(weights, features, labels, bound)
    assert (found - LoopSums(module).clipped_sum(weights, features, labels, bound)).abs().max() <= 1e-10
    assert found.norm() <= rows * bound * (1 + 1e-12)


def test_a_row_that_is_not_finite_counts_nothing_and_moves_no_other():
    module = build(_model(3, 2), FEATURES, CLASSES, 0)
    weights, sums = torch.from_numpy(parameters_vector(module)), HybridSums.of(module)
    assert sums is not None
    features, labels = torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    spoilt = features.clone()
    spoilt[2, 1] = torch.inf
    rest = sums.clipped_sum(weights, features[[0, 1, 3]], labels[[0, 1, 3]], 1.0)
    assert torch.equal(sums.clipped_sum(weights, spoilt, labels, 1.0), rest)
