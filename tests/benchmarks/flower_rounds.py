"""Workload A in Flower's simulation: `python flower_rounds.py TABLE PLAN OUT`, run by the peer's own Python with this folder on its path.

TABLE: the clients' rows (`workloads.write_table`). PLAN: an npz with `cohorts` [rounds, clients a round], numbers of clients, and
the initial weights by their names in the model. OUT: an npz with `seconds` [rounds] and the final weights.
A round is timed from when its clients are chosen to when their models are averaged.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

TABLE, PLAN, OUT = (str(Path(argument).resolve()) for argument in sys.argv[1:4])
WORKERS = 2
client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the client whose number the server sent."""
    import torch
    from workloads import make_model, read_client, train_locally

    torch.set_num_threads(1)
    config = message.content["config"]
    client, model = read_client(config["table"], int(config["client"])), make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train_locally(model, client)
    trained = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(client.labels)})}
    return Message(content=RecordDict(trained), reply_to=message)


class TimedFedAvg(FedAvg):
    """Federated averaging over given cohorts, each round timed."""

    def __init__(self, cohorts: np.ndarray, clients: int) -> None:
        share = cohorts.shape[1] / clients
        super().__init__(fraction_train=share, fraction_evaluate=0.0, min_train_nodes=cohorts.shape[1], min_available_nodes=clients)
        self.cohorts, self.clients = cohorts, clients
        self.seconds: list[float] = []
        self.begun = 0.0

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """One message a client of the cohort. Any node may stand for any client: it is told whose rows to take."""
        self.begun = time.perf_counter()
        while len(nodes := list(grid.get_node_ids())) < self.clients:
            time.sleep(0.05)
        for node, client in zip(nodes, self.cohorts[server_round - 1], strict=False):
            told = ConfigRecord({"server-round": server_round, "client": int(client), "table": TABLE})
            content = RecordDict({"arrays": arrays, "config": told})
            yield Message(content=content, message_type="train", dst_node_id=node)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the models by rows; every client of the cohort must have answered."""
        answered = list(replies)
        wrong = [reply for reply in answered if reply.has_error()]
        if wrong or len(answered) != self.cohorts.shape[1]:
            raise RuntimeError(f"round {server_round}: {len(answered)} answers, {len(wrong)} of them errors")
        averaged = super().aggregate_train(server_round, answered)
        self.seconds.append(time.perf_counter() - self.begun)
        return averaged


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """All rounds, then the results."""
    import torch
    from workloads import CLIENTS, make_model

    with np.load(PLAN) as plan:
        cohorts = plan["cohorts"]
        model = make_model()
        model.load_state_dict({name: torch.from_numpy(plan[name]) for name in model.state_dict()})
    strategy = TimedFedAvg(cohorts, CLIENTS)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=len(cohorts))
    weights = {name: value.numpy() for name, value in result.arrays.to_torch_state_dict().items()}
    np.savez(OUT, seconds=np.array(strategy.seconds), **weights)


def main() -> None:
    """Run the simulation on a Ray of its own."""
    from workloads import CLIENTS

    with tempfile.TemporaryDirectory(prefix="qf-") as folder:
        ray = {
            "num_cpus": WORKERS,
            "include_dashboard": False,
            "_temp_dir": folder,
            "log_to_driver": False,
            "object_store_memory": 400 * 2**20,
        }
        backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": ray}
        run_simulation(server_app=server_app, client_app=client_app, num_supernodes=CLIENTS, backend_config=backend)


if __name__ == "__main__":
    main()
