"""build.py: which compiled library is loaded, and which never is; and what the C sources that it compiles look like."""

import os
import re
import sysconfig
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from llamachat.engines.native import build

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here")
SOURCES = {file.name: re.sub(r"/\*.*?\*/", "", file.read_text(), flags=re.S) for file in build.SOURCES.glob("*.[ch]")}
ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture(autouse=True)
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was compiled instead of taken; the sources lie elsewhere, with no library that came with the package."""
    done = list[Path]()

    def compile_library(target: Path, kernels: Mapping[str, str], environment: Mapping[str, str]) -> None:
        assert kernels == build.for_this_processor()
        assert "PATH" in environment and "HF_TOKEN" not in environment
        target.write_text("compiled")
        done.append(target)

    (tmp_path / "package").mkdir(mode=0o755)
    monkeypatch.setattr(build, "SOURCES", tmp_path / "package")
    monkeypatch.setattr(build, "compile_library", compile_library)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return done


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_it_is_compiled_once_for_its_owner_only(compiled: list[Path], tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        library = build.library()
    finally:
        os.umask(before)
    assert build.is_compiled() and build.library() == library and len(compiled) == 1
    assert {each.stat().st_mode & 0o777 for each in (library, library.parent, library.parent.parent)} == {0o700}
    assert [each.name for each in library.parent.iterdir()] == [library.name]


@pytest.mark.parametrize("where", ["file", "folder"])
@pytest.mark.parametrize("how", ["mode", pytest.param("owner", marks=ROOT)])
def test_one_that_others_could_have_written_is_not_loaded(compiled: list[Path], where: str, how: str) -> None:
    library = build.library()
    library.write_text("theirs")
    place = library if where == "file" else library.parent
    place.chmod(0o720) if how == "mode" else os.chown(place, 12345, 12345)
    assert not build.is_compiled()
    if (where, how) == ("folder", "owner"):
        with pytest.raises(build.BuildError, match="belongs to another user; nothing is run from there"):
            build.library()
        return
    assert build.library() == library and library.read_text() == "compiled" and build.is_compiled()


def test_the_packages_own_is_taken_unless_others_could_have_written_it(compiled: list[Path]) -> None:
    shipped = build.SOURCES / build.LIBRARY
    shipped.write_text("shipped")
    shipped.chmod(0o755)
    assert build.library() == shipped and compiled == []
    shipped.chmod(0o775)
    assert build.library().parent.name == "native" and len(compiled) == 1


@pytest.mark.parametrize(
    ("flags", "name", "kernels"),
    [
        ("fpu avx2 fma f16c", "avx2-", ["avx2", "portable"]),
        ("avx2 fma f16c avx_vnni", "avxvnni-", ["avxvnni", "portable"]),
        ("avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_vnni", "avx512-", ["avx512", "portable"]),
        ("fpu sse2", "portable-", ["portable"]),
        ("", "", [*build.KERNELS["x86_64"]]),
    ],
)
def test_what_is_compiled_is_for_this_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, name: str, kernels: list[str]
) -> None:
    monkeypatch.setattr(build, "machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n" if flags else "")
    monkeypatch.setattr(build, "CPUINFO", tmp_path / "cpuinfo")
    assert build.wanted()[0] == name + build.LIBRARY and list(build.wanted()[1]) == kernels
    assert build.wanted(every=True) == (build.LIBRARY, build.KERNELS["x86_64"])


def test_one_for_another_processor_is_used_only_without_a_compiler(
    compiled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = build.SOURCES / f"another-{build.LIBRARY}"
    shipped.write_text("shipped")
    shipped.chmod(0o755)
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert build.library() == shipped and compiled == []
    monkeypatch.setattr(build, "compiler", lambda: "cc")
    assert build.library().parent.name == "native" and len(compiled) == 1


@pytest.mark.parametrize(("needs", "platform"), [("", "manylinux_2_34_x86_64"), ("libblas.so.3", "linux_x86_64")])
def test_a_wheel_is_for_every_linux_only_if_it_needs_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: str, platform: str
) -> None:
    ours, beside = tmp_path / build.LIBRARY, tmp_path / "libgomp.so.1"
    names = ["", "libc.so.6", needs, beside.name, "GLIBC_2.2.5", "GLIBC_2.17", "GLIBC_2.4", ""]
    ours.write_bytes("\0".join(names).encode())
    beside.write_bytes(b"\0GLIBC_2.34\0libc.so.6\0")
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "linux-x86_64")
    assert build.tag([ours, beside]) == platform
    assert build.tag([ours]) == "linux_x86_64"


def test_every_c_file_is_compiled() -> None:
    assert {f"{name}.c" for name in (*build.PARTS, *build.SET)} == {name for name in SOURCES if name.endswith(".c")}


def test_c_files_call_each_other_in_one_direction() -> None:
    defined = {
        match[1]: name
        for name, text in SOURCES.items()
        for match in re.finditer(r"^(?!static)\w[\w *]*?(\w+)\([^;{]*\) \{", text, re.M)
    }
    assert defined["engine_forward"] == "engine.c" and defined["claim"] == "alloc.c"
    calls = {
        name: {defined[called] for called in re.findall(r"\b(\w+)\(", text) if called in defined} - {name}
        for name, text in SOURCES.items()
    }
    assert "attention.c" in calls["engine.c"]
    assert list(TopologicalSorter(calls).static_order())


def test_no_c_function_is_longer_than_sixty_lines() -> None:
    lengths = [
        match[0].count("\n") + 1
        for text in SOURCES.values()
        for match in re.finditer(r"^\w[^\n]*\([^;{}]*\) \{\n.*?^\}", text, re.M | re.S)
    ]
    assert len(lengths) > 100 and max(lengths) <= 60
