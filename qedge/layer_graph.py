"""The ONNX graph of a chain of layers, written down layer by layer.

Every model that a job can name is such a chain, and its nodes are known: nothing is traced, which takes seconds. Other modules are left
to torch's exporter. Tensors carry the batch first, except within the quantum layer, where it comes last: its gates are then products
with constant matrices, and its state has the layout of `qedge.quantum.statevector.evolution`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from qedge import __version__
from qedge.quantum.qnn.layer import LARGEST_ANGLE, READOUT, Angles, QuantumLayer, Readout
from qedge.quantum.statevector.evolution import Circuit, matrices_of_layers
from qedge.quantum.statevector.gates import after_rx, rot

IR_VERSION = 10  # of operator set 20 and later: a newer one shuts older runtimes out for nothing

Array = npt.NDArray[np.generic]


def chain_graph(module: nn.Module, features: int, scaling: tuple[Array, Array] | None, opset: int) -> onnx.ModelProto | None:
    """From `features` [batch, F] to `probabilities` [batch, classes], for a module that is a chain of layers known here and ends in a
    linear one; None for every other.

    scaling: what is subtracted from the rows and what then divides them, float32 [F] each. Weights are named as in the module's state.
    """
    layers = [("", module)]
    if type(module) is nn.Sequential and not _does_more(module):
        layers = [(f"{name}.", layer) for name, layer in module._modules.items() if layer is not None]  # a layer may stand twice
    if not _is_known_chain([layer for _, layer in layers]):
        return None
    nodes = _Nodes()
    rows = "features"
    if scaling is not None:
        rows = nodes.add("Sub", rows, nodes.constant(scaling[0], "center"))
        rows = nodes.add("Div", rows, nodes.constant(scaling[1], "spread"))
    for name, layer in layers:
        rows = _WRITERS[type(layer)](nodes, layer, f"module.{name}", rows)
    nodes.add_as("probabilities", "Softmax", rows, axis=1)
    last = layers[-1][1]
    assert isinstance(last, nn.Linear)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in (("features", features), ("probabilities", last.out_features))
    ]
    graph = helper.make_graph(nodes.nodes, "main_graph", ends[:1], ends[1:], nodes.constants)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION,
        producer_name="qedge",
        producer_version=__version__,
    )


def _does_more(module: nn.Module) -> bool:
    """Something besides its class's forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _is_known_chain(layers: list[nn.Module]) -> bool:
    """Each layer is exactly of a kind that is written here, of float32, set as written, given what it takes, and does nothing besides."""
    dimensions = 2
    for layer in layers:
        if type(layer) not in _WRITERS or _does_more(layer) or any(one.dtype != torch.float32 for one in layer.parameters()):
            return False
        image = isinstance(layer, nn.Conv2d | nn.MaxPool2d)
        if isinstance(layer, nn.Flatten):
            dimensions, usual = 2, (layer.start_dim, layer.end_dim) == (1, -1)
        elif isinstance(layer, nn.Unflatten):
            usual = dimensions == 2 and layer.dim == 1 and all(isinstance(size, int) and size > 0 for size in layer.unflattened_size)
            dimensions = 1 + len(layer.unflattened_size)
        else:
            usual = isinstance(layer, nn.ReLU) or dimensions == (4 if image else 2)
        if isinstance(layer, nn.Conv2d):
            usual &= layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        if isinstance(layer, nn.MaxPool2d):
            usual &= not layer.ceil_mode and not layer.return_indices
        if not usual:
            return False
    return bool(layers) and type(layers[-1]) is nn.Linear


class _Nodes:
    """Nodes and constants in the order in which they are added, each with a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._shapes: dict[tuple[int, ...], str] = {}

    def constant(self, value: Array | float, name: str = "") -> str:
        """Its name; a single number is float32."""
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, None if isinstance(value, np.ndarray) else np.float32), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        """The name of its output."""
        return self.add_as(f"{operator.lower()}_{len(self.nodes)}", operator, *inputs, **attributes)

    def add_as(self, output: str, operator: str, *inputs: str, **attributes: object) -> str:
        """As `add`, its output being named `output`."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def rows(self, tensor: str, many: int) -> list[str]:
        """The names of a tensor's rows, each still of as many dimensions."""
        names = [f"split_{len(self.nodes)}_{place}" for place in range(many)]
        self.nodes.append(helper.make_node("Split", [tensor], names, axis=0, num_outputs=many))
        return names

    def reshape(self, tensor: str, *shape: int) -> str:
        """To `shape`: 0 for a length that stays, -1 for one that is found."""
        if shape not in self._shapes:
            self._shapes[shape] = self.constant(np.array(shape, np.int64))
        return self.add("Reshape", tensor, self._shapes[shape])

    def weight(self, tensor: torch.Tensor, name: str) -> str:
        """The name of a module's tensor."""
        return self.constant(tensor.detach().numpy(), name)


def _linear(nodes: _Nodes, layer: nn.Linear, name: str, rows: str) -> str:
    return nodes.add("Gemm", rows, *_own(nodes, layer, name), transB=1)


def _conv2d(nodes: _Nodes, layer: nn.Conv2d, name: str, rows: str) -> str:
    windows = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "pads": [*layer.padding] * 2, "dilations": layer.dilation}
    return nodes.add("Conv", rows, *_own(nodes, layer, name), group=layer.groups, **windows)


def _own(nodes: _Nodes, layer: nn.Linear | nn.Conv2d, name: str) -> Iterator[str]:
    for kind, tensor in (("weight", layer.weight), ("bias", layer.bias)):
        if tensor is not None:
            yield nodes.weight(tensor, f"{name}{kind}")


def _max_pool2d(nodes: _Nodes, layer: nn.MaxPool2d, name: str, rows: str) -> str:
    kernel, strides, padding, dilations = (
        [one, one] if isinstance(one, int) else [*one] for one in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    )
    return nodes.add("MaxPool", rows, kernel_shape=kernel, strides=strides, pads=padding * 2, dilations=dilations)


def _relu(nodes: _Nodes, layer: nn.ReLU, name: str, rows: str) -> str:
    return nodes.add("Relu", rows)


def _flatten(nodes: _Nodes, layer: nn.Flatten, name: str, rows: str) -> str:
    return nodes.add("Flatten", rows, axis=1)


def _unflatten(nodes: _Nodes, layer: nn.Unflatten, name: str, rows: str) -> str:
    return nodes.reshape(rows, 0, *(int(size) for size in layer.unflattened_size))


def _angles(nodes: _Nodes, layer: Angles, name: str, rows: str) -> str:
    squeezed = nodes.add("Tanh", nodes.add("Mul", rows, nodes.constant(layer.gain)))
    return nodes.add("Mul", squeezed, nodes.constant(LARGEST_ANGLE))


def _readout(nodes: _Nodes, layer: Readout, name: str, rows: str) -> str:
    return nodes.add("Mul", rows, nodes.constant(READOUT))


def _quantum(nodes: _Nodes, layer: QuantumLayer, name: str, rows: str) -> str:
    """<Z> of every wire. What depends on the weights alone is computed here, in float64, and is a constant of the graph."""
    circuit, plan = layer.circuit, layer.circuit.plan
    size, other = 2**plan.left, 2**plan.right
    gates = rot(layer.weights.detach().double())[None]
    if circuit.embedding == "rx":
        gates = torch.cat((after_rx(gates[:, :1]), gates[:, 1:]), 1)
    half = nodes.add("Mul", nodes.add("Transpose", rows, perm=[1, 0]), nodes.constant(0.5))
    cosines, sines = nodes.add("Cos", half), nodes.add("Sin", half)
    state = _embedded(nodes, plan.qubits, cosines, sines)
    turns = [*zip(*(nodes.rows(one, plan.qubits) for one in (cosines, sines)), strict=True)] if circuit.reupload else []
    for number, (left, right) in enumerate(matrices_of_layers(plan, gates)):
        if number:
            state = nodes.add("Gather", nodes.reshape(state, 2 * size * other, -1), nodes.constant(plan.ring.numpy()), axis=0)
        if number and circuit.reupload:
            state = _embedded_again(nodes, circuit, state, turns)
        planes = left[0] if number else left[0, :, :size]  # what was embedded first is real
        state = nodes.add("MatMul", _float32(nodes, planes), nodes.reshape(state, planes.shape[1], -1))
        state = nodes.add("Transpose", nodes.reshape(state, 2, size, other, -1), perm=[0, 2, 1, 3])
        state = nodes.add("MatMul", _float32(nodes, right[0]), nodes.reshape(state, 2 * other, -1))
    state = nodes.reshape(state, 2 * size * other, -1)
    signs = _float32(nodes, plan.constants(torch.float32).signs)
    return nodes.add("Transpose", nodes.add("MatMul", signs, nodes.add("Mul", state, state)), perm=[1, 0])


def _embedded(nodes: _Nodes, qubits: int, cosines: str, sines: str) -> str:
    """The state of wires that are each (cos, sin), [2^qubits, batch], real."""
    pairs = nodes.add("Concat", nodes.reshape(cosines, qubits, 1, -1), nodes.reshape(sines, qubits, 1, -1), axis=1)
    whole, *rest = nodes.rows(pairs, qubits)
    for wire, factor in enumerate(rest, start=1):
        product = nodes.add("Mul", nodes.reshape(whole, 2**wire, 1, -1), factor)
        whole = nodes.reshape(product, 2 ** (wire + 1), -1)
    return whole


def _embedded_again(nodes: _Nodes, circuit: Circuit, state: str, turns: list[tuple[str, str]]) -> str:
    """RY or RX of every wire on a state, [2 * 2^qubits, batch]: cos state + sin K state, with K = -iY or -iX.

    K swaps the wire's two values, X the planes as well, and changes signs. turns: (cos, sin) of each wire, [1, batch] each.
    """
    swap = nodes.constant(np.array([1, 0]))
    real = circuit.embedding == "ry"
    signs = nodes.constant(np.array([-1, 1], np.float32).reshape(2, 1) if real else np.array([1, -1], np.float32).reshape(2, 1, 1, 1))
    for wire, (cosine, sine) in enumerate(turns):
        turned = nodes.add("Gather", nodes.reshape(state, 2, 2**wire, 2, -1), swap, axis=2)
        if not real:
            turned = nodes.add("Gather", turned, swap, axis=0)
        turned = nodes.reshape(nodes.add("Mul", turned, signs), 2 * 2**circuit.plan.qubits, -1)
        state = nodes.add("Add", nodes.add("Mul", state, cosine), nodes.add("Mul", turned, sine))
    return state


def _float32(nodes: _Nodes, matrix: torch.Tensor) -> str:
    return nodes.constant(matrix.float().numpy())


_WRITERS: dict[type[nn.Module], Callable[..., str]] = {
    nn.Linear: _linear,
    nn.ReLU: _relu,
    nn.Conv2d: _conv2d,
    nn.MaxPool2d: _max_pool2d,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    Angles: _angles,
    QuantumLayer: _quantum,
    Readout: _readout,
}
