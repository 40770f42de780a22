"""The shape of the house, read from the syntax trees: one direction, no circles, light faces, modules of a readable size."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("qedge", "actors", "serve_apps")
ROOF = {"qedge.cli", "qedge.demo"}  # may reach up to actors and serve_apps, inside their functions
OUTSIDE_QEDGE = {"ray", "fastapi", "starlette"}
HEAVY = {
    "torch",
    "mlflow",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "sklearn",
    "scipy",
    "pandas",
    "pyarrow",
    "numpy",
    "ray",
    "fastapi",
    "cryptography",
    "networkx",
    "numba",
    "pennylane",
}

# Inside qedge, from the ground up; what is not named is a concept (privacy, edge, security, data, …), on the third row.
GROUND, PLAN, CONCEPT, ROUND, RECORDS, RUNS, TOP = range(7)
ROWS = {
    "errors": GROUND,
    "yaml_mapping": PLAN,
    "config": PLAN,
    "job": PLAN,
    "secure_aggregation.groups": PLAN,  # which thresholds protect, a job is asked before anything is computed
    "federated": ROUND,
    "analytics": ROUND,
    "registry": RECORDS,
    "recovery": RECORDS,
    "runs": RUNS,
    "display": TOP,
    "edge.display": TOP,
    "edge_commands": TOP,
    "quantum_commands": TOP,
    "quantum_display": TOP,
    "record_commands": TOP,
    "run_commands": TOP,
    "cli": TOP,
    "__main__": TOP,
    "demo": TOP,
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str, *, when_loaded: bool = False) -> set[str]:
    """Every module and name that module `name` imports; with `when_loaded`, only what loading it imports, not its functions."""
    return set(_imports(TREES[name], name, MODULES[name].name == "__init__.py", when_loaded))


def _imports(node: ast.AST, name: str, package: bool, when_loaded: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parts = name.split(".") if package else name.split(".")[:-1]
            above = parts[: len(parts) - child.level + 1] if child.level else []
            stem = ".".join([*above, *([child.module] if child.module else [])])
            yield from (stem, *(f"{stem}.{alias.name}" for alias in child.names))
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when_loaded:
            continue
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports(ast.Module([other], []), name, package, when_loaded)
        else:
            yield from _imports(child, name, package, when_loaded)


def row(module: str) -> int:
    """The row of a qedge module: that of the longest name in ROWS which leads to it."""
    parts = module.split(".")[1:]
    leading = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((ROWS[name] for name in leading if name in ROWS), CONCEPT)


def test_the_reader_of_imports_sees_every_way_to_import(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import a.b\nfrom . import c\nfrom ..d import e\nif TYPE_CHECKING:\n    import never\ndef f():\n    import late\n"
    monkeypatch.setitem(TREES, "qedge.x.y", ast.parse(source))
    monkeypatch.setitem(MODULES, "qedge.x.y", ROOT / "qedge" / "x" / "y.py")
    loaded = {"a.b", "qedge.x", "qedge.x.c", "qedge.d", "qedge.d.e"}
    assert imports("qedge.x.y", when_loaded=True) == loaded
    assert imports("qedge.x.y") == loaded | {"late"}


def test_no_layer_imports_one_above_it() -> None:
    above = {layer: set(LAYERS[at + 1 :]) for at, layer in enumerate(LAYERS)}
    upward = {
        f"{name} imports {used}"
        for name in MODULES
        for used in imports(name, when_loaded=name in ROOF)
        if used.split(".")[0] in above[name.split(".")[0]]
    }
    assert not upward


def test_qedge_imports_neither_ray_nor_a_web_framework_even_inside_functions() -> None:
    foreign = {
        f"{name} imports {used}"
        for name in MODULES
        if name.startswith("qedge")
        for used in imports(name, when_loaded=name in ROOF)
        if used.split(".")[0] in OUTSIDE_QEDGE
    }
    assert not foreign


def test_inside_qedge_each_module_imports_only_its_own_row_and_those_below() -> None:
    modules = [name for name in MODULES if name.startswith("qedge.")]
    upward = {f"{name} imports {used}" for name in modules for used in imports(name) if used.startswith("qedge.") and row(used) > row(name)}
    assert not upward


def test_there_is_no_circle_of_imports() -> None:
    graph = {name: {used for used in imports(name, when_loaded=True) if used in MODULES and used != name} for name in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert set(order) == set(MODULES)


def test_package_faces_import_nothing_heavy() -> None:
    faces = [name for name, path in MODULES.items() if path.name == "__init__.py"]
    heavy = {f"{name} imports {used}" for name in faces for used in imports(name, when_loaded=True) if used.split(".")[0] in HEAVY}
    assert not heavy


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after `code`."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    return HEAVY & set(json.loads(run.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import qedge",
        "from qedge import TrainingJob",
        "from qedge.cli import main\ntry: main(['--help'])\nexcept SystemExit as done: assert not done.code",
    ],
    ids=["import", "job", "help"],
)
def test_starting_loads_nothing_heavy(code: str) -> None:
    assert loaded_by(code) == set()


def test_the_public_names_are_all_importable() -> None:
    script = "import qedge; print(*[getattr(qedge, name).__name__ for name in qedge.__all__])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    classes = ["EdgeEngine", "QuantumRun", "Query", "QueryResult", "Requirement", "TrainingJob", "TrainingResult"]
    assert run.stdout.split() == [*classes, "open_ladder", "query", "solve", "train"], run.stderr


def test_no_module_is_longer_than_450_lines() -> None:
    long = {name: lines for name, path in MODULES.items() if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 450}
    assert not long


def test_every_module_says_what_it_is() -> None:
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []
