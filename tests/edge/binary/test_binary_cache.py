"""The kernels are compiled once: a second process finds them, also where neither the package nor the home can be written to."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qedge.edge.binary.architecture import Architecture, Layer
from qedge.edge.binary.module import pack
from tests.edge.binary.binary_networks import random_module

ROOT = Path(__file__).resolve().parents[3]
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1  # Linux: root without it is held to the modes of files
SCRIPT = """
import sys
from pathlib import Path
from qedge.edge.binary import kernels
from qedge.edge.binary.network import BinaryNetwork
BinaryNetwork.load(Path(sys.argv[1]))
compiled = kernels.forward.stats
print(sum(compiled.cache_hits.values()), sum(compiled.cache_misses.values()))
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A package that nobody may write to and one for temporary files that it may be, as a hardened container has them."""
    shutil.copytree(ROOT / "qedge", tmp_path / "package" / "qedge", ignore=shutil.ignore_patterns("__pycache__"))
    pack(random_module(Architecture((1, 1, 30), (Layer(20),), 3), 2, 0)).save(tmp_path / "binary.npz")
    (tmp_path / "temporary").mkdir()
    folders = [folder for folder in (tmp_path / "package").rglob("*") if folder.is_dir()]
    for folder in (tmp_path / "package", *folders):
        folder.chmod(0o555)
    yield tmp_path
    for folder in (tmp_path / "package", *folders):
        folder.chmod(0o755)


def _loads(place: Path) -> str:
    """Hits and misses of the cache, of a process that may write to `temporary` alone."""
    own = {"PYTHONPATH": str(place / "package"), "TMPDIR": str(place / "temporary"), "HOME": "/proc", "XDG_CACHE_HOME": "/proc"}
    environment = {"PATH": os.environ["PATH"], **own}
    command = [sys.executable, "-c", SCRIPT, str(place / "binary.npz")]
    library = ctypes.CDLL(None)

    def held_to_modes() -> None:
        library.prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)

    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/", preexec_fn=held_to_modes)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_package_that_cannot_be_written_to_compiles_once(place: Path) -> None:
    assert _loads(place) == "0 1"
    assert _loads(place) == "1 0"
    (kept,) = (place / "temporary").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700


def test_compiled_code_is_not_taken_from_a_folder_that_others_can_write_to(place: Path) -> None:
    open_to_all = place / "temporary" / f"qedge-kernels-{os.getuid()}"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert _loads(place) == "0 1"
    assert list(open_to_all.iterdir()) == []
