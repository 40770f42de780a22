"""What a model is worth on the rows of the clients that live on one node."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from qedge.data.federation import Rows
from qedge.errors import ModelError
from qedge.federated.messages import Broadcast, ClientSpec
from qedge.job import Personalisation
from qedge.kernels.batches import LocalSGD, plan, single_thread
from qedge.kernels.sequential import SequentialKernel
from qedge.models import set_parameters, users_code

LOSS_ROWS = 256  # of a client, that its loss is taken on


class ClientEvaluation:
    """Of every client whose rows it was given; `module` is for it to load weights into."""

    def __init__(self, spec: ClientSpec, module: torch.nn.Module, train: Rows, test: Rows | None) -> None:
        self.spec, self.module, self.train, self.test = spec, module, train, test

    def correct_counts(self, weights: np.ndarray, clients: np.ndarray, cap: int) -> np.ndarray:
        """Over the `clients` that hold rows out: the sum of round(cap · share correct), and cap times how many they are, [2] int64.

        At most `cap` rows of each are looked at, and one client adds 0..cap to either. A client on whose rows the model raises is right
        on none.
        """
        total = np.zeros(2, dtype=np.int64)
        if self.test is None:
            return total
        set_parameters(self.module, weights)
        self.module.eval()
        with single_thread(), torch.no_grad():
            for client in clients:
                features, labels = (rows[:cap] for rows in self.test.of(int(client)))
                if len(labels):
                    total += round(cap * self._share_correct(features, labels)), cap
        return total

    def losses(self, broadcast: Broadcast, clients: np.ndarray) -> np.ndarray:
        """Each client's mean loss under the weights, and the root of its mean squared loss, [clients, 2] float64.

        Over its training rows; where it has more than 256, over so many drawn anew for the round. 0 for a client without rows, NaN for
        one on whose rows the user's model raises.
        """
        set_parameters(self.module, broadcast.weights)
        self.module.eval()
        found = np.zeros((len(clients), 2))
        with single_thread(), torch.no_grad():
            for place, client in enumerate(clients.tolist()):
                found[place] = self._loss(broadcast.round, client)
        self.module.train()
        return found

    def _loss(self, round_number: int, client: int) -> tuple[float, float]:
        features, labels = self.train.of(client)
        if not len(labels):
            return 0.0, 0.0
        if len(labels) > LOSS_ROWS:
            generator = self.spec.key.derive("losses", round_number, client).generator()
            chosen = np.sort(generator.choice(len(labels), LOSS_ROWS, replace=False))
            features, labels = features[chosen], labels[chosen]
        try:
            with users_code("the model"):
                outputs = self.module(torch.tensor(features))
                losses = functional.cross_entropy(outputs, torch.tensor(labels), reduction="none").double()
                return float(losses.mean()), float(losses.square().mean().sqrt())
        except ModelError:
            return math.nan, math.nan

    def _share_correct(self, features: np.ndarray, labels: np.ndarray) -> float:
        try:
            with users_code("the model"):
                return float((self.module(torch.tensor(features)).argmax(1).numpy() == labels).mean())
        except ModelError:
            return 0.0

    def accuracies(self, weights: np.ndarray, clients: np.ndarray, personalisation: Personalisation | None) -> np.ndarray:
        """Of each client its rows held out, and of those how many the weights get right as they are and, if asked, after the client has
        trained them on by itself: [clients, 3] float64, the last NaN where that was not asked.

        For rows that are nobody's secret, or whose owner alone hears of it. A client on whose rows the model raises is right on none.
        """
        found = np.full((len(clients), 3), math.nan)
        found[:, :2] = 0
        if self.test is None:
            return found
        with single_thread():
            for place, client in enumerate(clients.tolist()):
                features, labels = self.test.of(client)
                found[place, 0] = len(labels)
                if not len(labels):
                    continue
                found[place, 1] = self._right(weights, features, labels)
                if personalisation is not None:
                    found[place, 2] = self._right(self._trained_on(weights, client, personalisation), features, labels)
        return found

    def _right(self, weights: np.ndarray, features: np.ndarray, labels: np.ndarray) -> int:
        set_parameters(self.module, weights)
        self.module.eval()
        with torch.no_grad():
            return round(len(labels) * self._share_correct(features, labels))

    def _trained_on(self, weights: np.ndarray, client: int, personalisation: Personalisation) -> np.ndarray:
        """The weights after the client's own epochs; as they were where the model raises."""
        algorithm = self.spec.algorithm.model_copy(update={"local_epochs": personalisation.epochs, "loop": None})
        features, labels = self.train.of(client)
        batches = plan(features, labels, algorithm, lambda: self.spec.key.derive("personal steps", client).generator())
        sgd = LocalSGD(personalisation.learning_rate or algorithm.learning_rate, layers=personalisation.layers)
        trained = SequentialKernel(self.module, sgd).updates(weights, [batches])
        after: np.ndarray = weights + np.nan_to_num(trained.values[0], nan=0.0, posinf=0.0, neginf=0.0)
        return after
