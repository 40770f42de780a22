"""Secure sums at work: a round on Ray against its own CPU time, with and without the clients' noise, and what distributed noise costs.

**On Ray**: 50 clients of 24 made-up rows, an MLP 784-128-10 (101,770 weights), one group, a malicious server, two client actors; the
coordinator's side runs in this process. CPU time is that of this process and of every process of the cluster, from before a round to after
it; the bound compares wall time with it shared over two cores. With noise each client adds a share of discrete Gaussian noise of standard
deviation 4,000 grid units; rounds with and without take turns, and the plain round of the same clients stands beside.

**Distributed against central noise**: the digits over 400 clients, all of them in each of 30 rounds, epsilon 8 at delta 1e-3 **against
the server** both times: central noise calibrated without amplification, and shares sized for 90 % survivors less 10 % colluders in four
groups of 100. Accuracy on the held-out rows, the mean of the seeds; the settings were chosen by looking at seeds 0 and 1 of a simulation
of both, so both are optimistic by as much.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import ray

from actors import environment, reservation
from actors.client_workers import RayWorkers
from actors.cluster import connect
from qedge import TrainingJob, train
from qedge.audit.receipt import FILE, Receipt
from qedge.config import Settings
from qedge.data.federation import Rows
from qedge.federated.messages import Broadcast, Chunk, ClientSpec
from qedge.federated.randomness import RunKey
from qedge.federated.secure_sum import SecureSum
from qedge.federated.workers import chunk_size, make_chunks
from qedge.job import Algorithm, Model, SecureAggregation
from qedge.privacy.clipping import Grid
from qedge.privacy.noise_share import NoiseShare
from qedge.secure_aggregation.ring import Ring
from tests.benchmarks.figures import Figure, at_most, beside
from tests.benchmarks.surroundings import WORKERS, cluster, free_port, scratch, settings_of

REPEAT = 7
SEEDS = 2
CLIENTS, ROWS, FEATURES, HIDDEN, CLASSES = 50, 24, 784, 128, 10
PARAMS = (FEATURES + 1) * HIDDEN + (HIDDEN + 1) * CLASSES
VARIANCE = 16_000_000
DEADLINE_S = 120.0
SECURE = SecureAggregation()
APART = 0.015


def measure(repeat: int) -> list[Figure]:
    """`repeat` rounds of each kind on Ray, and of each noise as many runs, `SEEDS` at most."""
    with scratch() as folder:
        settings = settings_of(folder / "home", serve={"port": free_port()})
        with cluster(settings, serve=False) as processes, connect(settings, start=False):
            return _on_ray(repeat, processes) + _accuracy(min(repeat, SEEDS), settings)


def _on_ray(repeat: int, processes: Path) -> list[Figure]:
    """Rounds in turns: plain, secure, and secure with noise."""
    quiet = RayWorkers(_spec(None), _rows(), None, reservation.reserve("quiet", lambda: None))
    noisy = RayWorkers(_spec(NoiseShare("discrete-gaussian", VARIANCE)), _rows(), None, reservation.reserve("noisy", lambda: None))
    wall: dict[str, list[float]] = {"plain": [], "secure": [], "noisy": []}
    ratio: dict[str, list[float]] = {"secure": [], "noisy": []}
    for number in range(repeat + 1):
        broadcast, chunks = Broadcast(number + 1, np.zeros(PARAMS, dtype=np.float32)), _chunks()
        turns: dict[str, Callable[[], object]] = {
            "plain": lambda b=broadcast, c=chunks: quiet.partial_sum(b, c, DEADLINE_S),
            "secure": lambda b=broadcast, c=chunks: _secure_sum(quiet).of_round(b, c, quiet, DEADLINE_S, lambda session: None),
            "noisy": lambda b=broadcast, c=chunks: _secure_sum(noisy).of_round(b, c, noisy, DEADLINE_S, lambda session: None),
        }
        for name, take in turns.items():
            seconds, cpu = _timed(take, processes)
            if number == 0:  # tables of noise, connections
                continue
            wall[name].append(seconds)
            if name in ratio:
                ratio[name].append(seconds / (cpu / WORKERS))
    for workers, name in ((quiet, "quiet"), (noisy, "noisy")):
        for actor in (*workers.actors, workers.authority):
            ray.kill(actor)
        reservation.give_back(name)
    noise = [one / other for one, other in zip(wall["noisy"], wall["secure"], strict=True)]
    return [
        beside("a plain round on Ray", wall["plain"], "s"),
        beside("a secure round on Ray", wall["secure"], "s"),
        at_most("a secure round on Ray: wall over its CPU time shared by two cores", 1.2, ratio["secure"], "times"),
        at_most("… with the clients' noise: wall over CPU time shared by two cores", 1.2, ratio["noisy"], "times"),
        at_most("a secure round with distributed noise over the same without", 1.3, noise, "times"),
    ]


def _timed(take: Callable[[], object], processes: Path) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this process and the cluster's."""
    watched = [psutil.Process(), *environment.processes_of(processes)]
    before, begun = _cpu_of(watched), time.perf_counter()
    take()
    return time.perf_counter() - begun, _cpu_of(watched) - before


def _cpu_of(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes if process.is_running())


def _spec(share: NoiseShare | None) -> ClientSpec:
    sgd = Algorithm.model_validate({"batch_size": 16, "local_epochs": 1, "learning_rate": 0.1, "kernel": "stacked"})
    model, key = Model(kind="mlp", hidden=(HIDDEN,)), RunKey.from_seed(0)
    return ClientSpec(
        model, FEATURES, CLASSES, sgd, sgd.kernel, grid=Grid(0.5, PARAMS), count_weight=0, key=key, seed=0, secure=SECURE, share=share
    )


def _secure_sum(workers: RayWorkers) -> SecureSum:
    words = workers.spec.share.words if workers.spec.share else ""
    return SecureSum(SECURE, "run", RunKey.from_seed(1), 1, Ring(24), PARAMS, words)


def _rows() -> Rows:
    generator, rows = np.random.default_rng(0), CLIENTS * ROWS
    return Rows(generator.random((rows, FEATURES), dtype=np.float32), generator.integers(0, CLASSES, rows), np.arange(0, rows + 1, ROWS))


def _chunks() -> list[Chunk]:
    return [Chunk(clients) for clients in make_chunks(np.arange(CLIENTS), None, chunk_size(CLIENTS, PARAMS, stacked=True))]


def _accuracy(seeds: int, settings: Settings) -> list[Figure]:
    """Central and distributed noise, the same epsilon against the same adversary."""
    found: dict[str, list[float]] = {"central": [], "distributed": []}
    epsilons: dict[str, float] = {}
    for seed in range(seeds):
        for name in found:
            home = settings.home / f"{name}-{seed}"
            result = train(_digits(name, seed), backend="ray", settings=settings.model_copy(update={"home": home}))
            receipt = Receipt.read(home / "runs" / result.run_id / "model" / FILE)
            claimed = {one.adversary: float(one.epsilon) for one in receipt.guarantees}
            epsilons[name] = claimed["server" if name == "distributed" else "roster holder"]
            found[name].append(result.accuracy or 0.0)
    means = {name: statistics.fmean(accuracies) for name, accuracies in found.items()}
    shown = {name: f"{means[name]:.4f} ({', '.join(f'{one:.4f}' for one in accuracies)})" for name, accuracies in found.items()}
    apart = means["central"] - means["distributed"]
    return [
        Figure(f"digits, central noise at epsilon {epsilons['central']:.3f} against who knows the roster: accuracy", "", shown["central"]),
        Figure(f"digits, distributed noise at epsilon {epsilons['distributed']:.3f} against the server", "", shown["distributed"]),
        Figure("… apart", f"≤ {100 * APART:g} points", f"{100 * apart:.2f} points", apart <= APART),
    ]


def _digits(noise: str, seed: int) -> TrainingJob:
    """All 400 clients in each round."""
    job = {
        "name": "digits",
        "data": {"source": "digits", "partition": {"dirichlet": 0.5, "clients": 400}, "test": 0.2, "evaluation": "public"},
        "model": {"kind": "linear"},
        "algorithm": {"local_epochs": 5, "batch_size": None, "learning_rate": 0.5, "kernel": "stacked", "server_momentum": 0.9},
        "privacy": {"epsilon": 8, "delta": 1e-3, "clipping": {"bound": 0.5}},
        "rounds": 30,
        "seed": seed,
    }
    if noise == "central":
        return TrainingJob.parse(job | {"cohort": {"sampling": "poisson", "rate": 1.0}})
    secure = {"colluders": 0.1, "survivors": 0.9}
    return TrainingJob.parse(job | {"cohort": {"sampling": "uniform", "size": 400}, "secure_aggregation": secure})
