"""A circuit of the user's own on any PennyLane device as a torch layer that private training can rely on.

`qml.qnn.TorchLayer` reads its weights from a dictionary of its own, past torch's registry. What replaces a module's parameters (per-sample
gradients by `torch.func`, say) is then not seen: every gradient comes out zero, without an error. Here the parameters that torch knows
are the ones that the circuit gets at each call, and the gradient of each row is that of the row alone, by whichever method the device
has. Slow and exact; `refuse_if_mixed` checks it against the loop before any private training all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pennylane as qml
import torch
from pennylane.measurements import MeasurementProcess
from torch import nn

from qedge.errors import InvalidCircuit, InvalidValue
from qedge.quantum.backend import Backend, device

Circuit = Callable[..., MeasurementProcess | Sequence[MeasurementProcess]]


class CircuitLayer(nn.Module):
    """circuit(inputs, **weights), a function that applies gates and returns expectation values, as [batch, inputs] to [batch, outputs].

    wires: how many; weights: the shape of each of its weights, drawn evenly from [0, 2π); method: of differentiation, "best" as PennyLane
    chooses for the device.

    Raises:
        InvalidValue: no weights, or one named `inputs`.
        UnknownBackend, BackendUnavailable, TooManyQubits: as `device` does.
    """

    def __init__(
        self, circuit: Circuit, wires: int, weights: Mapping[str, Sequence[int]], *, backend: Backend | None = None, method: str = "best"
    ) -> None:
        super().__init__()
        if not weights or "inputs" in weights:
            raise InvalidValue(f"weights: at least one shape, none named 'inputs'; given: {', '.join(weights) or 'none'}")
        self.circuit, self.wires, self.method = circuit, wires, method
        self.backend = backend or Backend(name="default.qubit")
        self.names = tuple(weights)
        for name, shape in weights.items():
            self.register_parameter(name, nn.Parameter(2 * torch.pi * torch.rand(*shape)))
        self._node: Callable[..., object] | None = None
        device(self.backend, wires, self.backend.seed)  # refuses now what would fail at the first row

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Every row by itself, since not every device takes several, [batch, outputs].

        Raises:
            InvalidCircuit: the device does not run it, or it returns something else than expectation values.
        """
        weights = {name: getattr(self, name) for name in self.names}
        rows = [self._run(row, weights) for row in inputs]
        return torch.stack(rows).to(inputs.dtype)

    def gradients_of_rows(self, inputs: torch.Tensor, slope: torch.Tensor) -> dict[nn.Parameter, torch.Tensor]:
        """The gradient of each row's sum(slope * output), [batch, ...] for each parameter: of one row after another."""
        parameters = [getattr(self, name) for name in self.names]
        each = []
        for row, theirs in zip(inputs, slope, strict=True):
            with torch.enable_grad():
                found = self._run(row.detach(), dict(zip(self.names, parameters, strict=True)))  # past the hooks on this very module
                value = (found.to(theirs.dtype) * theirs).sum()
                each.append(torch.autograd.grad(value, parameters))
        return {parameter: torch.stack(parts) for parameter, parts in zip(parameters, zip(*each, strict=True), strict=True)}

    def _run(self, row: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self._node is None:
            self._node = self._made()
        try:
            found = self._node(row, **weights)
        except (qml.exceptions.DeviceError, qml.exceptions.QuantumFunctionError, qml.exceptions.WireError) as error:
            raise InvalidCircuit(f"'{self.backend.name}' does not run the circuit: {error}", given=self.backend.name) from error
        values = list(found) if isinstance(found, tuple | list) else [found]
        tensors = [value.reshape(()) for value in values if isinstance(value, torch.Tensor) and value.numel() == 1]
        if len(tensors) < len(values):
            raise InvalidCircuit("the circuit returns something else than expectation values; accepted: qml.expval, one or several")
        return torch.stack(tensors)

    def _made(self) -> Callable[..., object]:
        where = device(self.backend, self.wires, self.backend.seed)
        node: Callable[..., object] = qml.QNode(self.circuit, where, interface="torch", diff_method=self.method)
        if self.backend.shots is not None:
            node = qml.set_shots(node, shots=self.backend.shots)
        return node

    def __getstate__(self) -> dict[str, object]:
        """Without the device, which neither copies nor pickles: the copy makes its own."""
        return {**self.__dict__, "_node": None}
