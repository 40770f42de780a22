"""The error tree: stable codes, exit codes, facts that survive a process boundary, and a docstring that draws the real tree."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedge import errors
from qedge.errors import Failed, QEdgeError, Refused, Tampered, nearest


def tree(root: type[QEdgeError] = QEdgeError) -> list[type[QEdgeError]]:
    return [root, *(below for child in root.__subclasses__() for below in tree(child))]


CLASSES = [kind for kind in tree() if kind.__module__ == errors.__name__]
FACTS = st.dictionaries(st.sampled_from(["subject", "asked", "left", "given", "path"]), st.none() | st.integers() | st.text())


def drawn() -> dict[str, str]:
    """Parent of every class in the module's docstring, by the drawing's indentation."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if branch := re.match(r"^([│ ]*)[├└]── ((?:\w+)(?:, \w+)*)", line):
            depth = len(branch[1]) // 4
            names = branch[2].split(", ")
            parents |= dict.fromkeys(names, above[depth])
            above[depth + 1 :] = [names[-1]]
        elif line == QEdgeError.__name__:
            above = [line]
    return parents


def test_the_docstring_draws_exactly_the_real_tree() -> None:
    assert drawn() == {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES if kind is not QEdgeError}


def test_every_error_of_the_module_is_in_the_tree() -> None:
    raised = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert set(raised) == set(CLASSES)


def test_codes_are_unique_and_well_formed() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(\.[a-z-]+)?", code) for code in codes)


def test_codes_do_not_change() -> None:
    """A code is what other people's programs match on: to change or remove one is a breaking change; new ones may come."""
    codes = {kind.__name__: kind.code for kind in CLASSES}
    released = {
        "QEdgeError": "qedge",
        "Refused": "refused",
        "InvalidJob": "job.invalid",
        "UnknownKey": "job.unknown-key",
        "NotInThisVersion": "job.not-in-this-version",
        "InvalidConfig": "config.invalid",
        "DataError": "data.invalid",
        "DataNotFound": "data.not-found",
        "InvalidValue": "data.invalid-value",
        "LabelMismatch": "data.label-mismatch",
        "ModelError": "model.invalid",
        "PrivacyError": "privacy.refused",
        "InvalidPrivacy": "privacy.invalid",
        "BudgetExceeded": "privacy.budget-exceeded",
        "ScopeConflict": "privacy.scope-conflict",
        "UnknownScope": "privacy.unknown-scope",
        "UnknownRun": "run.unknown",
        "UnknownModel": "model.unknown",
        "InvalidRequest": "request.invalid",
        "PortInUse": "serve.port-in-use",
        "AddressUnreachable": "address.unreachable",
        "HomeUnusable": "home.unusable",
        "Tampered": "tampered",
        "LedgerTampered": "tampered.ledger",
        "LogTampered": "tampered.log",
        "ReceiptTampered": "tampered.receipt",
        "CheckpointTampered": "tampered.checkpoint",
        "ArtifactTampered": "tampered.artifact",
        "RolledBack": "tampered.rolled-back",
        "Failed": "failed",
        "RoundFailed": "round.failed",
        "Diverged": "round.diverged",
        "Fenced": "run.fenced",
        "StorageFull": "storage.full",
        "RegistryUnavailable": "registry.unavailable",
    }
    assert {name: codes.get(name) for name in released} == released


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_refusal_exits_2_and_a_failure_exits_1(kind: type[QEdgeError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, Refused | Tampered) else 1)
    assert kind is QEdgeError or sum(issubclass(kind, branch) for branch in (Refused, Tampered, Failed)) == 1


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@given(message=st.text(), facts=FACTS)
def test_an_error_crosses_a_process_boundary_whole(kind: type[QEdgeError], message: str, facts: dict[str, object]) -> None:
    error = kind(message, **facts)
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(twin) is kind
        assert (str(twin), twin.message, twin.facts, twin.code) == (message, message, facts, kind.code)
        assert twin.as_dict() == {"code": kind.code, "message": message, **facts}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_says_in_one_sentence_what_it_is(kind: type[QEdgeError]) -> None:
    assert kind.__doc__
    assert "code" in vars(kind)


def test_nearest_offers_the_near_name_and_else_all_names() -> None:
    known = ["epsilon", "delta", "budget"]
    assert nearest("epsilom", known) == "did you mean 'epsilon'?"
    assert nearest("zzz", known) == "known: budget, delta, epsilon"
