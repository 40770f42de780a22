"""A binary network that is ready to answer, and its file.

Equal to its torch reference (`qedge.edge.binary.training`) bit for bit: rows are rounded to whole numbers first, by one subtraction and
one multiplication in float32; everything up to the logits is whole numbers; softmax is additions, multiplications and one division in
float64, with an exponential of our own.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from qedge.edge.binary import kernels
from qedge.edge.binary.architecture import MOST_BITS, Architecture, Encoding, Layer
from qedge.edge.rung import Rows
from qedge.errors import InvalidRequest, ModelError, UnfitGraph
from qedge.storage import write_atomically

Array = npt.NDArray[np.generic]
_HEAD = ("channels", "rows", "columns", "classes", "weight_bits", "input_bits")
_LAYER = 13  # numbers: outputs, kernel, stride, pads, pool, its stride; (0, 0) is the kernel of a dense layer
_LARGEST_NUMBER = 2**24
_MAGIC = 8  # bytes before the length of the header
_KINDS = {"head": "<i4", "layers": "<i4", "words": "<u8", "limits": "<i4", "ranges": "<f4", "last": "<f8"}


class BinaryNetwork:
    """A `Runner` of packed weights; any number of threads may use it at once.

    words: [sum of words * lanes] uint64, every layer's weights as the kernels take them; limits: [hidden outputs] int32, the most bits in
    which an output's weights may differ from its input for it to be +1; last: [scale and bias, classes] float64.
    """

    def __init__(
        self,
        architecture: Architecture,
        encoding: Encoding,
        words: kernels.Words,
        limits: npt.NDArray[np.int32],
        last: npt.NDArray[np.float64],
    ) -> None:
        self.architecture, self.encoding = architecture, encoding
        self.features, self.classes = architecture.features, architecture.classes
        self._arrays = (
            architecture.plan(encoding.bits),
            np.array(words, np.uint64),
            np.array(limits, np.int32),
            np.array(encoding.ranges, np.float32),
            np.array(last, np.float64),
        )

    def run(self, rows: Rows) -> Rows:
        """See `Runner.run`. A value beyond what training saw counts as the nearest it saw; a row with NaN gets NaN.

        Raises:
            InvalidRequest: rows are not [batch, features].
        """
        if rows.dtype != np.float32 or not rows.flags.carray:
            rows = np.array(rows, np.float32, order="C")  # the kernels are compiled for this kind alone
        if rows.ndim != 2 or rows.shape[1] != self.features:
            raise InvalidRequest(f"rows have the shape {list(rows.shape)}; accepted: [batch, {self.features}]", given=list(rows.shape))
        probabilities = np.empty((len(rows), self.classes), np.float32)
        kernels.forward(*self._arrays, rows, probabilities)
        return probabilities

    def close(self) -> None:
        """See `Runner.close`."""
        del self._arrays

    def save(self, path: Path) -> None:
        """Write the network as one .npz, the same bytes for the same network.

        Raises:
            StorageFull, HomeUnusable: it cannot be written; an older file is untouched.
        """
        whole = self.architecture
        head = np.array((*whole.image, whole.classes, whole.weight_bits, self.encoding.bits))
        layers = np.array([_numbers(layer) for layer in whole.layers]).reshape(-1, _LAYER)
        _, words, limits, ranges, last = self._arrays
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for (name, kind), array in zip(_KINDS.items(), (head, layers, words, limits, ranges, last), strict=True):
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as entry:
                    np.lib.format.write_array(entry, np.asarray(array).astype(kind), version=(1, 0), allow_pickle=False)
        write_atomically(path, content.getvalue(), mode=0o644)

    @classmethod
    def load(cls, path: Path) -> BinaryNetwork:
        """The network in the file that `save` wrote, compiled and ready.

        Nothing is taken by its word: sizes are checked against the file's own length before anything is made of them.

        Raises:
            ModelError: it is no such file.
        """
        try:
            network = _network(_arrays(path))
        except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, KeyError, UnfitGraph) as error:
            raise ModelError(f"{path.name} is not the file of a binary network: {error}", path=path.name) from None
        network.run(np.zeros((1, network.features), np.float32))
        return network


def packed(signs: npt.NDArray[np.bool_]) -> kernels.Words:
    """Weights [outputs, inputs], True for +1, as the kernels take them: [words * lanes].

    >>> packed(np.array([[True, False, True], [False, True, False]]))[:3]
    array([5, 2, 0], dtype=uint64)
    """
    outputs, inputs = signs.shape
    words, lanes = -(-inputs // 64), -(-outputs // 8) * 8
    padded = np.zeros((lanes, 64 * words), np.bool_)
    padded[:outputs, :inputs] = signs
    found = np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    return np.ascontiguousarray(found.T).ravel()


def planes_of(levels: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.bool_]:
    """Weights [outputs, inputs] of levels 0 to 2^bits - 1 as weights of one bit, [bits * outputs, inputs], the lowest bit first."""
    return np.concatenate([(levels >> bit) & 1 > 0 for bit in range(bits)])


def _numbers(layer: Layer) -> tuple[int, ...]:
    return (layer.outputs, *(layer.kernel or (0, 0)), *layer.stride, *layer.pads, *layer.pool, *layer.pool_stride)


def _layer(numbers: Sequence[int]) -> Layer:
    outputs, *rest = numbers
    kernel, stride, top_left, bottom_right, pool, pool_stride = zip(rest[::2], rest[1::2], strict=True)
    pads = (*top_left, *bottom_right)
    return Layer(outputs, None if kernel == (0, 0) else kernel, stride, pads, pool, pool_stride)


def _arrays(path: Path) -> dict[str, Array]:
    """What the file holds, by name.

    Raises:
        ValueError and zipfile's own: it holds something else.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if [entry.filename for entry in entries] != [f"{name}.npy" for name in _KINDS]:
            raise ValueError(f"accepted: the arrays {', '.join(_KINDS)}")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise ValueError("accepted: arrays that are neither compressed nor encrypted")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its arrays are longer than the file")
        return {name: _array(archive.read(entry), name, kind) for entry, (name, kind) in zip(entries, _KINDS.items(), strict=True)}


def _array(content: bytes, name: str, kind: str) -> Array:
    """The array of a .npy file. Its header is matched, not parsed: numpy's reader takes it for Python, and fails in a dozen ways."""
    begin = _MAGIC + 2 + int.from_bytes(content[_MAGIC : _MAGIC + 2], "little")
    header = rb"\x93NUMPY\x01\x00..\{'descr': '%b', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n" % kind.encode()
    found = re.fullmatch(header, content[:begin], re.DOTALL)
    if found is None:
        raise ValueError(f"'{name}' does not begin as numpy's format 1.0 of {kind}, row by row, does")
    shape = tuple(int(size) for size in found[1].split(b",") if size.strip())
    dtype = np.dtype(kind)
    if math.prod(shape) * dtype.itemsize != len(content) - begin:
        raise ValueError(f"'{name}' is {list(shape)}, and {len(content) - begin} bytes follow")
    return cast(Array, np.frombuffer(content, dtype, offset=begin).reshape(shape).astype(dtype.newbyteorder("=")))


def _network(found: dict[str, Array]) -> BinaryNetwork:
    """Raises: ValueError, UnfitGraph."""
    head, layers = found["head"], found["layers"]
    if head.shape != (len(_HEAD),) or layers.ndim != 2 or layers.shape[1] != _LAYER:
        raise ValueError(f"head {list(head.shape)} and layers {list(layers.shape)}; accepted: [{len(_HEAD)}] and [layers, {_LAYER}]")
    if max(np.abs(head.astype(np.int64)).max(), np.abs(layers.astype(np.int64)).max(initial=0)) > _LARGEST_NUMBER:
        raise ValueError(f"a size is over {_LARGEST_NUMBER}")
    channels, rows, columns, classes, weight_bits, input_bits = head.tolist()
    if not 1 <= input_bits <= MOST_BITS:
        raise ValueError(f"{input_bits} bits of input; accepted: 1 to {MOST_BITS}")
    architecture = Architecture((channels, rows, columns), tuple(_layer(one) for one in layers.tolist()), classes, weight_bits)
    plan = architecture.plan(input_bits)
    weights = int((plan[:, kernels.WORDS] * plan[:, kernels.LANES]).sum())
    wanted = {
        "words": (weights,),
        "limits": (sum(layer.outputs for layer in architecture.layers),),
        "ranges": (2, architecture.features),
        "last": (2, classes),
    }
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise ValueError(f"'{name}' has the shape {list(found[name].shape)}; accepted: {list(shape)}")
    ranges, last = found["ranges"].astype(np.float32), found["last"].astype(np.float64)
    if not np.isfinite(ranges).all() or not np.isfinite(last).all() or (ranges[1] < 0).any():
        raise ValueError("ranges and scales are finite numbers, levels a unit at least 0")
    return BinaryNetwork(
        architecture, Encoding(ranges, input_bits), found["words"].astype(np.uint64), found["limits"].astype(np.int32), last
    )
