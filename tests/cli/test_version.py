"""--version tells what would run, and loads none of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from llamachat import __version__
from llamachat.cli import version
from llamachat.engines.native import build


def test_the_version_is_alone_on_the_first_line_and_torch_is_not_imported() -> None:
    code = (
        "import sys; sys.argv = ['llamachat', '--version']\nfrom llamachat.cli.main import main\n"
        "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *others, imported = done.stdout.splitlines()
    assert (first, imported) == (f"llamachat {__version__}", "False")
    assert [line.split()[0] for line in others] == ["engine", "python", "with", "on"]
    assert "torch 2." in others[2]


@pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler here")
def test_the_engine_is_named_by_its_best_kernels() -> None:
    build.library()
    machine = build.KERNELS.get(build.machine(), {"portable": ""})
    assert version.engine_line() in {f"native, {name} kernels" for name in machine}


def test_the_engine_is_neither_compiled_nor_needed_to_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "place", lambda: tmp_path / "library")
    monkeypatch.setattr(build, "compiler", lambda: "cc")
    assert version.engine_line() == "native, to be compiled at the first start"
    assert not (tmp_path / "library").exists()
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert version.engine_line() == "torch; the native engine needs a C compiler"
    (tmp_path / "library").write_text("no library")
    assert version.engine_line().startswith("torch; the native library cannot be loaded")


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "PACKAGES", ("no-such-package",))
    assert "with     no-such-package (missing)" in list(version.lines())
