"""Build hook: compiles the native kernels into the wheel where there is a C compiler; without one the wheel is pure Python.

They are those for this processor; with LLAMACHAT_KERNELS=all those of every one of its family, for a wheel that
others get, with GCC's OpenMP beside them.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ENGINE = Path(__file__).parent / "llamachat" / "engines" / "native"


class NativeKernels(BuildHookInterface):  # type: ignore[type-arg]
    """Adds llamachat/engines/native/c/<library> to a wheel, and makes the wheel one of this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        spec = importlib.util.spec_from_file_location("build", ENGINE / "build.py")
        assert spec is not None and spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        which = os.environ.get("LLAMACHAT_KERNELS", "")
        if which not in ("", "all"):
            self.app.abort(f"LLAMACHAT_KERNELS={which} is not known: all, or nothing for those of this processor")
        name, kernels = build.wanted(every=which == "all")
        target = Path(self.directory) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            build.compile_library(target, kernels=kernels)
        except build.BuildError as error:
            self.app.display_warning(f"the native engine is left out, answers will come slower: {error}")
            return
        beside = build.runtime() if which == "all" else None
        libraries = [target, *([beside] if beside else [])]
        for library in libraries:
            build_data["force_include"][str(library)] = f"llamachat/engines/native/c/{library.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{build.tag(libraries)}"
