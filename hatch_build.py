"""Build hook: compiles the native kernels into the wheel where there is a C compiler; without one the wheel is pure Python."""

import importlib.util
import sysconfig
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
        target = Path(self.directory) / build.LIBRARY
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            build.compile_library(target)
        except build.BuildError as error:
            self.app.display_warning(f"the native engine is left out, answers will come slower: {error}")
            return
        build_data["force_include"][str(target)] = f"llamachat/engines/native/c/{build.LIBRARY}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
