"""What the machine is and gives: its processor, how fast memory is read, and how much of it a process holds."""

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from llamachat.engines.native.abi import native_library
from llamachat.engines.native.build import BuildError
from llamachat.engines.native.engine import usable_kernels
from llamachat.engines.native.pack import aligned
from llamachat.system import environment

# instructions that kernels here or in peers are made of, by Linux' names
TELLING = ("avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp",
           "i8mm", "sve")  # fmt: skip
WAYS = 4  # to read memory, in probe.c
MOST = 1 << 31  # bytes that are read at most; far more than caches hold


@lru_cache(maxsize=1)  # the next amount's block takes the place of the last one's
def _block(amount: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    data = aligned(amount)
    data[:] = 1
    return data


def read_bandwidth(threads: int, amount: int, passes: int = 3) -> float:
    """Bytes a second that so many threads read of so many bytes, again and again: what caches keep of them counts as it
    does for weights. The threads read in each of probe.c's ways: the fastest one's median of some passes. Raises
    build.BuildError."""
    lib = native_library()
    amount = min(max(amount // 1024, threads) * 1024, MOST)
    data = _block(amount)

    def seconds(way: int) -> float:
        start = time.perf_counter()
        lib.read_memory(data.ctypes.data, amount, threads, way)
        return time.perf_counter() - start

    return amount / min(statistics.median(seconds(way) for _ in range(passes)) for way in range(WAYS))


def resident() -> tuple[int, int]:
    """Bytes of memory that this process holds now, mapped files included, and the most it has held.

    Where the system does not tell the first (it is Linux that does), both are the most.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(found["VmRSS"].split()[0]) * 1024, int(found["VmHWM"].split()[0]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most, most


def processor() -> str:
    """What the processor is, as far as it can be known: virtual machines often give a family in the place of a name."""
    said = _cpuinfo() or {"model name": _brand() or platform.processor() or platform.machine()}
    name = said.get("model name") or said.get("CPU part") or platform.machine()
    numbers = [f"{key.removeprefix('cpu ')} {said[key]}" for key in ("cpu family", "model") if key in said]
    flags = set(said.get("flags", said.get("Features", "")).split())
    parts = [name.strip(), ", ".join(numbers), " ".join(flag for flag in TELLING if flag in flags)]
    return "; ".join([*filter(None, parts), f"kernels {usable_kernels()[0]}"])


def _cpuinfo() -> dict[str, str]:
    """Of the first processor, as Linux tells it; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = text.split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _brand() -> str:
    """As macOS tells it; nothing elsewhere."""
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment.of_python())
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.stdout.strip()


def bandwidth_of(threads: int) -> Callable[[int], float]:
    """read_bandwidth with so many threads, of an amount; or 0 where there is no native library to read with."""
    try:
        native_library()
    except BuildError:
        return lambda amount: 0.0
    return lambda amount: read_bandwidth(threads, amount)
