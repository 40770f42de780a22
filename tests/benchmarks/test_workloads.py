"""Workload A is the one that was published, and the job made of it starts from the same rows and weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qedge.data.federation import load
from qedge.models import build, parameters_vector
from tests.benchmarks.rounds import ROUNDS, cohorts_of, job_of
from tests.benchmarks.workloads import (
    CLASSES,
    CLIENTS,
    COHORT,
    NORM_AFTER_20_ROUNDS,
    Client,
    make_clients,
    make_model,
    norm,
    published_cohorts,
    read_client,
    train_plainly,
    write_table,
)


@pytest.fixture(scope="module")
def clients() -> list[Client]:
    return make_clients()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, clients: list[Client]) -> Path:
    path = tmp_path_factory.mktemp("workload") / "a.npz"
    write_table(clients, path)
    return path


@pytest.mark.slow
def test_plain_training_reaches_the_published_norm(clients: list[Client]) -> None:
    """4.55388, on which three frameworks agree: rows, their order, cohorts, initial weights and training are all as published."""
    assert norm(train_plainly(clients, published_cohorts(20))) == pytest.approx(NORM_AFTER_20_ROUNDS, abs=5.1e-6)


def test_a_table_gives_each_client_its_rows_in_their_order(clients: list[Client], table: Path) -> None:
    for number in (0, 9, 10, CLIENTS - 1):
        read = read_client(str(table), number)
        np.testing.assert_array_equal(read.features, clients[number].features)
        np.testing.assert_array_equal(read.labels, clients[number].labels)


def test_the_job_reads_the_same_clients_under_the_same_numbers(clients: list[Client], table: Path) -> None:
    job = job_of(table, ROUNDS)
    federation = load(job.data, job.seed)
    assert len(federation.clients) == CLIENTS
    assert federation.schema.labels == tuple(range(CLASSES))
    assert federation.test is None
    for number, client in enumerate(clients):
        features, labels = federation.client(number)
        np.testing.assert_array_equal(features, client.features)
        np.testing.assert_array_equal(labels, client.labels)


def test_the_job_starts_from_the_workloads_weights(table: Path) -> None:
    job = job_of(table, ROUNDS)
    module = build(job.model, 64, CLASSES, job.seed)
    np.testing.assert_array_equal(
        parameters_vector(module), np.concatenate([p.detach().numpy().ravel() for p in make_model().parameters()])
    )


def test_the_cohorts_given_to_the_peer_are_as_large_as_the_published_ones_and_repeat(table: Path) -> None:
    job = job_of(table, ROUNDS)
    cohorts = cohorts_of(job)
    assert cohorts.shape == (ROUNDS, COHORT)
    assert all(len(set(cohort)) == COHORT for cohort in cohorts)
    assert set(cohorts.ravel()) <= set(range(CLIENTS))
    np.testing.assert_array_equal(cohorts, cohorts_of(job))
