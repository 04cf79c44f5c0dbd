"""What `llamachat --version` tells. Imports no engine and no torch: versions are read from what is installed."""

import ctypes
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from llamachat.version import VERSION

PACKAGES = ("torch", "numpy", "tokenizers", "sentencepiece", "tiktoken", "huggingface-hub", "bitsandbytes")


def lines() -> Iterator[str]:
    """The first is for scripts."""
    yield f"llamachat {VERSION}"
    yield f"engine   {engine_line()}"
    yield f"python   {platform.python_version()} ({platform.python_implementation()})"
    yield f"with     {', '.join(f'{name} {_installed(name)}' for name in PACKAGES)}"
    yield f"on       {platform.platform()}"


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(missing)"


def engine_line() -> str:
    """The native library and the best kernels it has for this processor; it is only looked for, never compiled."""
    from llamachat.engines.native import build

    if build.is_compiled():
        try:
            return f"native, {_kernels(str(build.library()))} kernels"
        except (OSError, AttributeError) as error:  # not this machine's, or damaged
            return f"torch; the native library cannot be loaded ({error})"
    if build.compiler():
        return "native, to be compiled at the first start"
    return "torch; the native engine needs a C compiler"


def _kernels(library: str) -> str:
    best = ctypes.CDLL(library).usable_kernels
    best.restype = ctypes.c_char_p
    return str(best(0).decode())
