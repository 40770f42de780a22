"""How far rounding alone can take two runs apart: the reference kernel, from weights that differ in their last bit.

A unit of ReLU, or the largest of a pool, that two runs see on different sides of a tie sends a client's whole training another way. What
comes of that is the least by which two frameworks' final weights can be told apart.
"""

from __future__ import annotations

import numpy as np

from qedge import TrainingJob
from qedge.data.federation import load
from qedge.federated.client import FederatedClient
from qedge.federated.messages import Broadcast, Chunk, ClientSpec
from qedge.federated.randomness import RunKey
from qedge.federated.selection.drawing import draw_cohort
from qedge.models import parameters_vector
from qedge.privacy.clipping import FIXED_STEP, from_grid


def one_bit_apart(job: TrainingJob, seeds: int) -> list[float]:
    """The largest difference between the final weights of two runs of the job whose first weights differ by their last bit, up or down
    at random, for each of so many drawings.
    """
    federation, key = load(job.data, job.seed), RunKey.from_seed(job.seed)
    features, classes = len(federation.schema.features), len(federation.schema.labels)
    spec = ClientSpec(job.model, features, classes, job.algorithm, "sequential", None, 0, key.derive("clients"), job.seed)
    client = FederatedClient(spec, federation.train, None)
    first = parameters_vector(client.module)

    def trained(weights: np.ndarray) -> np.ndarray:
        for number in range(1, job.rounds + 1):
            cohort = draw_cohort(job.cohort, len(federation.clients), key, number)
            partial = client.partial_sum(Broadcast(number, weights), [Chunk(cohort)])
            weights = (weights + from_grid(partial.total, FIXED_STEP, partial.weight)).astype(np.float32)
        return weights

    ours = trained(first)
    apart = []
    for seed in range(seeds):
        up = np.random.default_rng(seed).random(len(first)) < 0.5
        moved = np.nextafter(first, np.where(up, np.inf, -np.inf).astype(np.float32))
        apart.append(float(np.abs(trained(moved) - ours).max()))
    return apart
