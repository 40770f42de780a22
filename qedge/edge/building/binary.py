"""BINARY: one bit a weight and an activation, trained and never cast, by the model's own answers and, as half of what counts, the labels.

Source: Hubara et al., "Binarized neural networks", NeurIPS 2016; the training is that of `qedge.edge.binary.training`.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from qedge.edge.binary.network import BinaryNetwork
from qedge.edge.binary.reading import architecture_of
from qedge.edge.building.choice import answers
from qedge.edge.building.graph import width_of
from qedge.edge.calibration import Labelled
from qedge.edge.rung import Runner

FILE = "binary.npz"
SEED = 0  # of weights and of how rows are mixed; the same rows give the same rung


def binary(model: onnx.ModelProto, fitting: Labelled, reference: Runner, folder: Path) -> tuple[tuple[str, ...], str, BinaryNetwork]:
    """The rung's files, how it was made, and what answers as they do.

    reference: the FP32 rung, which teaches.

    Raises:
        UnfitGraph: a graph that is no chain of layers which have a binary counterpart. Diverged: it learnt nothing.
    """
    from qedge.edge.binary.training import EPOCHS, train_binary

    architecture, (_, classes) = architecture_of(model), width_of(model)
    network = train_binary(lambda rows: answers(reference, rows), fitting.rows, fitting.labels, classes, architecture, seed=SEED)
    network.save(folder / FILE)
    how = f"trained for {EPOCHS} epochs on {len(fitting)} rows by labels and by FP32's answers; weights and activations of one bit"
    return (FILE,), how, BinaryNetwork.load(folder / FILE)
