"""Measure the promised figures: `python tests/benchmarks/run.py [NAME …] [--repeat N]`; all of them without a name.

Each benchmark is a module beside this one, runs in a process of its own and writes its section of RESULTS.md as soon as it is
done. The exit code is 0 when every figure was reached.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the modules are `tests.benchmarks.…`, here and for the tests

from tests.benchmarks.results import RESULTS, put, section

NAMES = (
    *("accuracy", "binary_rung", "parity", "crashes", "dpsgd", "kernels", "ledger_load", "privacy_cost", "rounds", "scale"),
    *("secure", "secure_rounds", "startup"),
    *("edge_cascade", "edge_compression", "edge_engine", "edge_gateway", "edge_peers", "edge_search"),
    *("edge_selector", "edge_sharing", "edge_storm"),
    *("quantum_compilation", "quantum_federated", "quantum_kernels", "quantum_layers", "quantum_mitigation", "quantum_qaoa"),
    *("quantum_vqe", "quantum_workers"),
)


def measure(name: str, repeat: int | None, results: Path) -> bool:
    """Run one benchmark here and write its section; whether all of its figures were reached."""
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")
    figures = benchmark.measure(benchmark.REPEAT if repeat is None else repeat)
    command = f"python tests/benchmarks/run.py {name}" + (f" --repeat {repeat}" if repeat is not None else "")
    text = section(name, str(benchmark.__doc__).strip(), figures, command)
    put(results, name, text, NAMES)
    print(text, flush=True)
    return all(figure.kept for figure in figures)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--repeat", type=int, help="repetitions, seeds or killed processes of each kind; default: each benchmark's own")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to write to")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"unknown benchmark '{unknown.pop()}'; there are {', '.join(NAMES)}")
    if given.repeat is not None and given.repeat < 1:
        parser.error("--repeat must be at least 1")
    names = given.names or list(NAMES)
    if len(names) == 1:
        sys.exit(0 if measure(names[0], given.repeat, given.results) else 1)
    options = [*([] if given.repeat is None else ["--repeat", str(given.repeat)]), "--results", str(given.results)]
    failed = [name for name in names if subprocess.run([sys.executable, __file__, name, *options], check=False).returncode]
    if failed:
        sys.exit(f"not reached, or not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
