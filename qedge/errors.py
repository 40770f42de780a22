"""Every error qedge raises on purpose, in one tree.

QEdgeError
├── Refused                      exit 2, nothing written, nothing charged
│   ├── InvalidJob               a job file that cannot be read as a job
│   │   ├── UnknownKey           a key or kind nobody knows (nearest name offered)
│   │   └── NotInThisVersion     a known name that this version does not carry out
│   ├── InvalidConfig            a setting out of range, or an unknown one
│   ├── InvalidCommand           a command or option of the command line that there is not
│   ├── DataError                the data do not fit the job
│   │   ├── DataNotFound         missing file, column or client
│   │   ├── InvalidValue         NaN or infinite, not a number
│   │   └── LabelMismatch        labels and model output do not fit
│   ├── ModelError               a model that cannot be built or trained under the job
│   ├── PrivacyError             a combination with no honest guarantee
│   │   ├── InvalidPrivacy       epsilon, delta, rate or bound out of range
│   │   ├── BudgetExceeded       the plan does not fit what is left
│   │   ├── ScopeConflict        the data belong to another scope
│   │   └── UnknownScope         no such scope
│   ├── UnknownRun               no such run
│   ├── UnknownModel             no such model, version or alias
│   ├── InvalidRequest           a tensor of the wrong shape, type or name
│   │   ├── RequestTooLarge      a body over the limit
│   │   ├── RequestTimeout       a body that did not arrive in time
│   │   ├── UnsupportedMediaType a body that is not JSON by its own word
│   │   ├── UnknownPath          no such endpoint
│   │   └── MethodNotAllowed     an endpoint that does not take this method
│   ├── QuantumError             a quantum job that cannot be carried out as asked
│   │   ├── UnknownBackend       no such backend, or one that is not installed
│   │   ├── BackendUnavailable   a backend that lacks a token, or cannot do what is asked of it
│   │   ├── TooManyQubits        it would not fit in memory
│   │   ├── InvalidHamiltonian   not Hermitian, or a molecule that is not supported
│   │   ├── InvalidProblem       a graph or QUBO that is empty, disconnected or not finite
│   │   ├── InvalidCircuit       a circuit that cannot be read (line and column) or run
│   │   └── GateBudgetExceeded   more gates than were allowed
│   ├── EdgeError                a ladder that cannot be built, or a node that cannot run it as asked
│   │   ├── UnknownRung          no such rung, or none in this ladder
│   │   ├── InvalidCalibration   rows that no rung can be calibrated or validated by
│   │   ├── UnfitGraph           custom operators, dynamic ranks, several inputs
│   │   ├── NoRungFits           a requirement that no rung meets; the nearest is named
│   │   └── OverBudget           it would not fit in the node's bytes, by the estimate, which is shown
│   ├── PortInUse                the port is taken
│   ├── AddressUnreachable       the Ray address or the endpoint does not answer
│   ├── HomeUnusable             QEDGE_HOME cannot be written, or is on the wrong node of a cluster
│   └── InvalidKey               a key file others can read, or something that is not a key
├── Tampered                     exit 2: something signed or chained was altered
│   ├── LedgerTampered, LogTampered, ReceiptTampered, CheckpointTampered, ArtifactTampered
│   └── RolledBack               an old ledger or log was put back
└── Failed                       exit 1: the work was begun and could not be finished
    ├── RoundFailed              deadline passed, or no client left
    ├── Diverged                 the update is not finite or too large for the grid
    ├── Fenced                   another coordinator has taken the run over
    ├── SumAborted               a secure sum that too few came through; nothing of it was opened
    ├── MessageRefused           a message of a secure sum that is not what the protocol or a policy allows
    ├── WorkersLost              quantum workers died or were late again and again; a batch has no answers
    ├── StorageFull              the disk is full or failing; what was written is whole
    ├── Overloaded               the endpoint has no room for the request now
    └── RegistryUnavailable      MLflow does not answer; the run is kept and published later
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QEdgeError(Exception):
    """Root. `code` is stable; `facts` says what was given and what would be accepted."""

    code = "qedge"
    exit_code = 1

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.facts))

    def as_dict(self) -> dict[str, object]:
        """The error as `--json` and problem bodies show it."""
        return {"code": self.code, "message": self.message, **self.facts}


def _rebuild(kind: type[QEdgeError], message: str, facts: dict[str, object]) -> QEdgeError:
    return kind(message, **facts)


class Refused(QEdgeError):
    """Bad input or a refusal: nothing was written and nothing was charged."""

    code = "refused"
    exit_code = 2


class InvalidJob(Refused):
    """A job that cannot be read as one."""

    code = "job.invalid"


class UnknownKey(InvalidJob):
    """A key or kind nobody knows; the message offers the nearest."""

    code = "job.unknown-key"


class NotInThisVersion(InvalidJob):
    """A name the field knows and this version does not carry out."""

    code = "job.not-in-this-version"


class InvalidConfig(Refused):
    """A setting that is unknown or out of range."""

    code = "config.invalid"


class InvalidCommand(Refused):
    """A command, option or argument that the command line does not take."""

    code = "command.invalid"


class DataError(Refused):
    """The data do not fit the job."""

    code = "data.invalid"


class DataNotFound(DataError):
    """A file, column or client that is not there."""

    code = "data.not-found"


class InvalidValue(DataError):
    """A column with NaN, an infinity or something that is not a number."""

    code = "data.invalid-value"


class LabelMismatch(DataError):
    """Fewer than two labels, a label not declared, or a model whose output does not fit them."""

    code = "data.label-mismatch"


class ModelError(Refused):
    """A model that cannot be built, or not trained under this job."""

    code = "model.invalid"


class PrivacyError(Refused):
    """A combination that has no honest guarantee."""

    code = "privacy.refused"


class InvalidPrivacy(PrivacyError):
    """epsilon, delta, rate or clipping bound out of range."""

    code = "privacy.invalid"


class BudgetExceeded(PrivacyError):
    """The plan does not fit what is left of the budget."""

    code = "privacy.budget-exceeded"


class ScopeConflict(PrivacyError):
    """The data belong to a scope other than the one asked for, to several, or to other clients than the scope's."""

    code = "privacy.scope-conflict"


class UnknownScope(PrivacyError):
    """No budget scope of that name."""

    code = "privacy.unknown-scope"


class UnknownRun(Refused):
    """No run of that id."""

    code = "run.unknown"


class UnknownModel(Refused):
    """No model, version or alias of that name."""

    code = "model.unknown"


class InvalidRequest(Refused):
    """A request whose tensors do not fit the model."""

    code = "request.invalid"


class RequestTooLarge(InvalidRequest):
    """A request body over the limit."""

    code = "request.too-large"


class RequestTimeout(InvalidRequest):
    """A request body that did not arrive in time."""

    code = "request.timeout"


class UnsupportedMediaType(InvalidRequest):
    """A request body whose content type is not application/json."""

    code = "request.media-type"


class UnknownPath(InvalidRequest):
    """No endpoint has this path."""

    code = "request.unknown-path"


class MethodNotAllowed(InvalidRequest):
    """The endpoint does not take this method."""

    code = "request.method"


class QuantumError(Refused):
    """A quantum job that cannot be carried out as asked."""

    code = "quantum.refused"


class UnknownBackend(QuantumError):
    """No backend of that name is installed."""

    code = "quantum.unknown-backend"


class BackendUnavailable(QuantumError):
    """A backend that lacks a token or a package, or cannot do what is asked of it."""

    code = "quantum.backend-unavailable"


class TooManyQubits(QuantumError):
    """A state that would not fit in memory."""

    code = "quantum.too-many-qubits"


class InvalidHamiltonian(QuantumError):
    """An operator that is not Hermitian, or a molecule that is not supported."""

    code = "quantum.hamiltonian"


class InvalidProblem(QuantumError):
    """A graph or QUBO that is empty, disconnected or not finite."""

    code = "quantum.problem"


class InvalidCircuit(QuantumError):
    """A circuit that cannot be read, or not be run here."""

    code = "quantum.circuit"


class GateBudgetExceeded(QuantumError):
    """More gates, after compilation, than were allowed."""

    code = "quantum.gate-budget"


class EdgeError(Refused):
    """A ladder of rungs that cannot be built, or a node that cannot run it as asked."""

    code = "edge.refused"


class UnknownRung(EdgeError):
    """No such rung of precision, or none in this ladder."""

    code = "edge.unknown-rung"


class InvalidCalibration(EdgeError):
    """Rows that no rung can be calibrated or validated by."""

    code = "edge.calibration"


class UnfitGraph(EdgeError):
    """A graph with custom operators, dynamic ranks or several inputs."""

    code = "edge.graph"


class NoRungFits(EdgeError):
    """A requirement that no rung of the ladder meets on this node."""

    code = "edge.no-rung-fits"


class OverBudget(EdgeError):
    """More bytes than the node has left for models."""

    code = "edge.over-budget"


class PortInUse(Refused):
    """The port is taken by another process."""

    code = "serve.port-in-use"


class AddressUnreachable(Refused):
    """The Ray address or the endpoint does not answer."""

    code = "address.unreachable"


class HomeUnusable(Refused):
    """QEDGE_HOME cannot be created or written, or is not where the cluster keeps its state."""

    code = "home.unusable"


class InvalidKey(Refused):
    """A key file that others can read, or bytes or text that are not a key."""

    code = "key.invalid"


class Tampered(QEdgeError):
    """Something signed or chained was altered."""

    code = "tampered"
    exit_code = 2


class LedgerTampered(Tampered):
    """The privacy ledger does not agree with its own chain."""

    code = "tampered.ledger"


class LogTampered(Tampered):
    """The audit log does not agree with its own chain."""

    code = "tampered.log"


class ReceiptTampered(Tampered):
    """A receipt whose signature or digests do not hold."""

    code = "tampered.receipt"


class CheckpointTampered(Tampered):
    """A checkpoint or write-ahead record that does not match its digest."""

    code = "tampered.checkpoint"


class ArtifactTampered(Tampered):
    """A model file that does not match the digest on its receipt."""

    code = "tampered.artifact"


class RolledBack(Tampered):
    """A ledger or log older than one that was seen."""

    code = "tampered.rolled-back"


class Failed(QEdgeError):
    """Work that was begun and could not be finished; it can be resumed."""

    code = "failed"


class RoundFailed(Failed):
    """A round that missed its deadline or lost every worker."""

    code = "round.failed"


class Diverged(Failed):
    """An update that is not finite or too large for the integer grid."""

    code = "round.diverged"


class Fenced(Failed):
    """Another coordinator has taken the run over."""

    code = "run.fenced"


class SumAborted(Failed):
    """A secure sum that could not be had: too few clients came through, or what they revealed does not fit."""

    code = "secure.aborted"


class MessageRefused(Failed):
    """A message of a secure sum that the protocol, or the receiver's own policy, does not allow."""

    code = "secure.message-refused"


class WorkersLost(Failed):
    """Quantum workers that died, or were late, so often that a batch of circuits was given up."""

    code = "quantum.workers-lost"


class StorageFull(Failed):
    """The disk is full or failing; whatever was acknowledged is whole."""

    code = "storage.full"


class Overloaded(Failed):
    """The endpoint has no room for the request now; the same request may pass in a moment."""

    code = "serve.overloaded"


class RegistryUnavailable(Failed):
    """MLflow does not answer; the run is kept on disk and published later."""

    code = "registry.unavailable"


def nearest(word: str, known: Iterable[str]) -> str:
    """`"did you mean 'epsilon'?"` when something known is near, else what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
