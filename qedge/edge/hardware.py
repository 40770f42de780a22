"""What the node runs on: its processor, and the execution providers that ONNX Runtime has there."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_TELLING = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_vpopcntdq",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


class Machine(BaseModel):
    """What a measured time holds for: a machine that differs in any of it is another.

    features: instruction sets that matter here; cores: those that this process may use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    processor: str
    features: tuple[str, ...]
    cores: int
    runtime: str
    providers: tuple[str, ...]

    @property
    def saturates(self) -> bool:
        """Whether 8-bit products overflow their 16-bit sums (AVX2 without VNNI): then weights are quantised to 7 bits."""
        return not _DOT_PRODUCTS & set(self.features)


@functools.cache
def this_machine() -> Machine:
    """The machine that this process is on."""
    import onnxruntime

    processor, flags = _processor()
    return Machine(
        processor=processor,
        features=tuple(flag for flag in _TELLING if flag in flags),
        cores=len(os.sched_getaffinity(0)),
        runtime=f"onnxruntime {onnxruntime.__version__}",
        providers=providers(),
    )


def providers() -> tuple[str, ...]:
    """Execution providers that compute on this machine, in ONNX Runtime's own order; the processor's is always one."""
    import onnxruntime

    remote = {"AzureExecutionProvider"}  # sends rows elsewhere
    return tuple(name for name in onnxruntime.get_available_providers() if name not in remote)


def _processor() -> tuple[str, set[str]]:
    """Name and flags, from the kernel where it tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}
    name = told.get("model name") or platform.machine()
    return name, set((told.get("flags") or told.get("Features") or "").split())
