"""A version's network as an ExecuTorch program, `.pte`, for phones and boards that have no Python.

ExecuTorch is an extra of its own (`pip install 'qedge[executorch]'`): it brings compilers that nothing else here needs. The program takes
rows as callers have them and gives probabilities; it is written only when ExecuTorch answers as torch does.

Source: https://docs.pytorch.org/executorch/stable/, to_edge_transform_and_lower; XNNPACK delegates.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from qedge.errors import EdgeError, ModelError
from qedge.export import TOLERANCE, Served
from qedge.network import Network
from qedge.storage import write_atomically

MOST_ROWS = 256  # in one call
_TRIED = (1, 2, 7)


def export_pte(network: Network, path: Path) -> bytes:
    """Write the program: `forward(features float32 [batch, F]) -> probabilities float32 [batch, classes]`, batch up to 256; its bytes.

    Raises:
        EdgeError: ExecuTorch is not installed. ModelError: it cannot take the network, or its answers differ from torch's by over 1e-5.
        StorageFull, HomeUnusable: the file cannot be written; an older one is untouched.
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.runtime import Runtime
    except ImportError as error:
        raise EdgeError(f"ExecuTorch is not installed ({error}); `pip install 'qedge[executorch]'`", missing="executorch") from None
    served = Served(network.module, network.schema).eval()
    features = len(network.schema.features)
    batch = torch.export.Dim("batch", min=1, max=MOST_ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own deprecations
        try:
            traced = torch.export.export(served, (torch.zeros(2, features),), dynamic_shapes=({0: batch},))
            content = bytes(to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
        except Exception as error:  # the exporter raises what it meets
            raise ModelError(f"ExecuTorch cannot take the network: {error}") from error
    generator, schema = np.random.default_rng(0), network.schema
    with tempfile.TemporaryDirectory() as scratch:
        tried = Path(scratch) / "tried.pte"
        tried.write_bytes(content)
        method = Runtime.get().load_program(tried).load_method("forward")
        for rows in _TRIED:
            given = torch.from_numpy(schema.center + schema.spread * generator.random((rows, features), np.float32))
            with torch.no_grad():
                expected, (found,) = served(given), method.execute([given])
            if found.shape != expected.shape or not torch.allclose(found, expected, rtol=0, atol=TOLERANCE):
                raise ModelError(f"ExecuTorch does not answer as torch does on {rows} rows")
    write_atomically(path, content)
    return content
