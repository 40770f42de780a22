"""`make demo`: the main job from end to end, by the very commands a user would type.

Trains over 400 clients of the digits with client-level privacy, registers, serves, and asks the endpoint about every held-out
row; then stops what it started, also on Ctrl-C; `--keep` leaves the endpoint up. Each demo has a home of its own: the budget
of the last one is spent, and its ledger would refuse.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from qedge.command import INTERRUPTED, how_to_go_on
from qedge.federated.run_folder import RunFolder, run_ids
from qedge.ports import free_ports

JOB = {
    "name": "digits",
    "data": {"source": "digits", "partition": {"dirichlet": 0.5, "clients": 400}, "test": 0.2, "evaluation": "public"},
    "model": {"kind": "linear"},
    "algorithm": {
        "kind": "fedavg",
        "local_epochs": 10,
        "batch_size": 16,
        "learning_rate": 0.5,
        "server_momentum": 0.9,
        "server_averaging": 0.9,
    },
    "cohort": {"sampling": "poisson", "rate": 0.5},
    "privacy": {"unit": "client", "epsilon": 8, "delta": 0.00137, "clipping": {"bound": 0.5}},
    "rounds": 100,
    "seed": 0,
}


def run_demo(home: Path, keep: bool) -> int:
    """Run the commands one after another; the exit code of the first that fails, else 0."""
    begun = time.monotonic()
    home.mkdir(parents=True, exist_ok=True)
    job = home / "digits.yaml"
    job.write_text("# the job of `make demo`; change it and run `qedge train` on it\n" + yaml.safe_dump(JOB, sort_keys=False))
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    try:
        _run(home, "start", "--port", str(port))
        trained = _run(home, "train", str(job))
        _run(home, "deploy", "digits@champion", "--port", str(port))
        answered = _run(home, "predict", "digits", "--job", str(job), "--url", url)
        _run(home, "receipt", "verify", "digits@champion")
        _run(home, "budget", "show")
    except subprocess.CalledProcessError as error:
        return error.returncode
    finally:
        if not keep:
            _run(home, "stop")
    print(_summary(home, trained, answered, url, keep, time.monotonic() - begun))
    return 0


def _run(home: Path, *arguments: str) -> dict[str, object]:
    """One command as a user would type it, its JSON answer; what it shows goes straight to the terminal."""
    print(f"\n$ qedge {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "qedge", *arguments, "--home", str(home), "--json"]
    # In a session of its own, so that Ctrl-C reaches the demo alone, which then ends the command in order.
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        answer, _ = child.communicate()
    except KeyboardInterrupt:
        if "start" not in arguments:  # a cluster that is coming up is stopped when it is up
            child.send_signal(signal.SIGINT)
        child.communicate()
        raise
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    values: dict[str, object] = json.loads(answer.splitlines()[-1])
    return values


def _summary(home: Path, trained: dict[str, object], answered: dict[str, object], url: str, keep: bool, seconds: float) -> str:
    served = (
        f"endpoint        {url}/v2/models/digits/infer (stop it: qedge stop --home {home})"
        if keep
        else "endpoint        stopped (make demo ARGS=--keep leaves it up)"
    )
    return "\n".join(
        [
            "",
            f"accuracy        {answered['accuracy']:.4f} over HTTP on {answered['rows']} held-out rows",
            f"privacy         epsilon {trained['epsilon']:.3f} at delta {trained['delta']} for every client, by the ledger",
            f"model           digits version {trained['version']}, receipt {str(trained['receipt'])[:16]}",
            f"training        {trained['rounds']} rounds, {float(str(trained['seconds_per_round'])) * 1000:.0f} ms each",
            served,
            f"state           {home} (mlflow.db, artifacts/, ledger.db, audit.log, runs/, keys/)",
            f"MLflow UI       .venv/bin/qedge ui --home {home}",
            f"done in {seconds:.0f} s",
        ]
    )


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="make demo ARGS=…", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the endpoint up")
    parser.add_argument("--home", type=Path, default=Path(time.strftime(".qedge/demo-%Y%m%d-%H%M%S")), help="where its state goes")
    arguments = parser.parse_args()
    try:
        code = run_demo(arguments.home.resolve(), arguments.keep)
    except KeyboardInterrupt:
        code = INTERRUPTED
        print("\n".join(["", "interrupted", *to_go_on(arguments.home.resolve())]))
    sys.exit(code)


def to_go_on(home: Path) -> list[str]:
    """What to type to go on with the run that was begun, if one was and it has not ended."""
    begun = [run for run in run_ids(home) if RunFolder.open(home, run).read("result.json") is None]
    return [f"its run goes on with: .venv/bin/{how_to_go_on(run, home)}" for run in begun]


if __name__ == "__main__":
    main()
