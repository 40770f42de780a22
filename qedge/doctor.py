"""What this machine offers and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

from qedge.config import Settings

_PACKAGES = ("ray", "torch", "mlflow", "onnxruntime", "fastapi", "cryptography", "numpy")


def examine(settings: Settings) -> dict[str, object]:
    """Versions, cores, memory, disk, ONNX Runtime's execution providers; `missing` lists what would not work."""
    found: dict[str, object] = {"qedge": importlib.metadata.version("qedge"), "python": platform.python_version()}
    missing = []
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if "onnxruntime" not in missing:
        from qedge.edge.hardware import this_machine

        machine = this_machine()
        found["processor"] = machine.processor
        found["instruction sets"] = ", ".join(machine.features) or "none that matter here"
        found["8-bit products"] = "may saturate: weights are quantised to 7 bits" if machine.saturates else "exact"
        found["execution providers"] = ", ".join(machine.providers)
    found["cores"] = len(os.sched_getaffinity(0))
    found["memory, GiB"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    found["home"] = str(settings.home)
    place = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    if not os.access(place, os.W_OK):
        missing.append(f"write access to {place}")
    found["disk free, GiB"] = round(shutil.disk_usage(place).free / 2**30, 1)
    if (settings.home / "keys" / "signing.ed25519").exists():
        from qedge.security.keys import Keys, public_text

        found["public key"] = public_text(Keys.open(settings.home).public)
    found["registry"] = settings.mlflow_uri
    found["missing"] = ", ".join(missing) or "nothing"
    return found
