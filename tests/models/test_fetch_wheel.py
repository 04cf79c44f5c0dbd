"""Models inside wheels: the real pip against a folder with a tiny wheel."""

import base64
import hashlib
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llamachat.errors import CatalogError
from llamachat.models.catalog import ModelEntry, resolve
from llamachat.models.fetch import disk_usage, fetch, locate, remove
from llamachat.models.fetch import wheel as fetch_wheel
from llamachat.models.sources import WheelSource

# An old setuptools in the environment warns when pip is looked for after another test's library has imported distutils.
pytestmark = pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils:UserWarning")
DATA = random.Random(5).randbytes(3_000_000)
MEMBER = "tiny_model/tiny.gguf"


def build_wheel(folder: Path, member: str = MEMBER, data: bytes = DATA) -> WheelSource:
    """Write tiny_model-1.0-py3-none-any.whl; returns the source that pins it."""
    info = "tiny_model-1.0.dist-info"
    members = {
        member: data,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-package\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    sums = {name: base64.urlsafe_b64encode(hashlib.sha256(content).digest()) for name, content in members.items()}
    record = "".join(f"{name},sha256={sums[name].decode().rstrip('=')},{len(members[name])}\n" for name in members)
    folder.mkdir(exist_ok=True)
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**members, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(name, content)
    whole = wheel.read_bytes()
    digests = hashlib.sha256(whole).hexdigest(), hashlib.sha256(data).hexdigest()
    return WheelSource("tiny-model", "1.0", len(whole), digests[0], MEMBER, len(data), digests[1])


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelSource:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return build_wheel(tmp_path / "index")


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what comes after pip, which is slow to start: the wheel is copied instead."""

    def copy(source: WheelSource, partial: Path, progress: object) -> Path:
        (wheel,) = (tmp_path / "index").iterdir()
        return Path(shutil.copy(wheel, partial))

    monkeypatch.setattr(fetch_wheel, "pip_download", copy)


def entry(source: WheelSource) -> ModelEntry:
    return ModelEntry("tiny", source)


def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_wheel, "pip", lambda: pytest.fail("pip was asked"))


def partials() -> list[Path]:
    return list(fetch_wheel.models_dir().glob(".partial*"))


def child(source: WheelSource, *lines: str) -> subprocess.Popen[bytes]:
    """A process that fetches the model; `lines` may define `progress`."""
    begin = "import os, signal; from llamachat.models import fetch; from llamachat.models.catalog import *"
    begin += "; progress = fetch.silent"
    end = f"fetch.fetch(ModelEntry('tiny', WheelSource(**{asdict(source)!r})), progress)"
    return subprocess.Popen([sys.executable, "-c", "\n".join([begin, *lines, end])])


def test_fetch_downloads_verifies_and_unpacks_the_one_file(source: WheelSource, tmp_path: Path) -> None:
    assert locate(entry(source)) is None and disk_usage(entry(source)) == 0
    seen: list[tuple[str, int, int | None]] = []
    place = fetch(entry(source), lambda *step: seen.append(step))
    assert place == locate(entry(source)) == tmp_path / "cache/llamachat/models/tiny-model-1.0/tiny.gguf"
    assert place.read_bytes() == DATA and list(place.parent.iterdir()) == [place] and partials() == []
    assert {"fetching tiny-model 1.0", "unpacking tiny-model"} < {what for what, _, _ in seen}
    assert all(total is not None and 0 <= done <= total for _, done, total in seen)
    assert seen[-1] == ("unpacking tiny-model", len(DATA), len(DATA))


def test_a_second_fetch_asks_nobody_and_reads_nothing(source: WheelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    place = fetch(entry(source))
    no_pip(monkeypatch)
    monkeypatch.setattr("llamachat.models.fetch.verified.digest", None)
    assert fetch(entry(source)) == fetch(entry(source), offline=True) == place


@pytest.mark.parametrize("damage", [DATA[:-1], DATA[:-1] + b"!", b""])
@pytest.mark.usefixtures("copied")
def test_a_damaged_copy_is_fetched_anew(source: WheelSource, damage: bytes) -> None:
    place = fetch(entry(source))
    place.write_bytes(damage)
    os.utime(place, (1, 1))
    with pytest.raises(CatalogError, match="--offline forbids"):
        fetch(entry(source), offline=True)
    assert fetch(entry(source)).read_bytes() == DATA


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sha256": "0" * 64}, "the package index gave another tiny_model-1.0-.*sha256 differs.*thrown away"),
        ({"member_sha256": "0" * 64}, "is not the file in models.toml; it was thrown away"),
        ({"member_bytes": 1000}, "is not the file in models.toml; it was thrown away"),
        ({"member": "tiny_model/other.gguf"}, "holds no tiny_model/other.gguf"),
        ({"bytes": 1 << 60}, "of disk and .* has .*; it was not fetched"),
    ],
)
@pytest.mark.usefixtures("copied")
def test_what_is_not_as_pinned_leaves_nothing_behind(source: WheelSource, change: dict[str, str], message: str) -> None:
    with pytest.raises(CatalogError, match=message) as caught:
        fetch(entry(replace(source, **change)))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert locate(entry(replace(source, **change))) is None and partials() == []  # type: ignore[arg-type]


def test_an_index_without_the_package_is_an_error_with_pips_reason(source: WheelSource) -> None:
    with pytest.raises(CatalogError, match=r"pip could not fetch none==1\.0: No matching .*; .*check the network"):
        fetch(entry(replace(source, wheel="none")))
    assert partials() == []


def test_offline_fetches_nothing(source: WheelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pip(monkeypatch)
    with pytest.raises(CatalogError, match=r"tiny-model 1\.0 is not on this machine; --offline forbids"):
        fetch(entry(source), offline=True)


@pytest.mark.parametrize("step", ["fetching", "checking", "unpacking"])
def test_kill_9_in_any_step_leaves_no_file_in_place_and_the_next_try_works(
    source: WheelSource, copied: None, step: str
) -> None:
    kill = f"progress = lambda what, done, total: what.startswith({step!r}) and os.kill(os.getpid(), signal.SIGKILL)"
    assert child(source, kill).wait() == -signal.SIGKILL
    assert locate(entry(source)) is None and len(partials()) == 1
    place = fetch(entry(source))
    assert place.read_bytes() == DATA and partials() == [] and list(place.parent.iterdir()) == [place]


def test_ctrl_c_while_pip_runs_ends_pip_and_cleans_up(source: WheelSource, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel.run_watched([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, source, 2, interrupt)
    assert time.monotonic() - begin < 30
    with pytest.raises(KeyboardInterrupt):
        fetch(entry(source), interrupt)
    assert locate(entry(source)) is None and partials() == []


def test_two_processes_at_once_both_get_the_file_and_one_downloads_it(source: WheelSource, tmp_path: Path) -> None:
    counted = f"""if True:
        from llamachat.models.fetch import wheel as fetch_wheel
        download = fetch_wheel.pip_download
        fetch_wheel.pip_download = lambda *a: open({str(tmp_path / "log")!r}, "a").write("x") and download(*a)"""
    both = [child(source, counted), child(source, counted)]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "x"
    place = locate(entry(source))
    assert place is not None and place.read_bytes() == DATA and partials() == []


def install(folder: Path, data: bytes = DATA, version: str = "1.0") -> Path:
    (folder / f"tiny_model-{version}.dist-info").mkdir(parents=True)
    (folder / "tiny_model").mkdir()
    (folder / "tiny_model/__init__.py").write_text("raise SystemExit('imported')")
    (folder / MEMBER).write_bytes(data)
    return folder / MEMBER


def test_an_installed_package_is_used_in_place_and_never_deleted(
    source: WheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    no_pip(monkeypatch)
    assert locate(entry(source)) == fetch(entry(source)) == fetch(entry(source), offline=True) == file
    with pytest.raises(CatalogError, match=r"belongs to the installed package tiny-model; .*pip uninstall tiny-model"):
        remove(entry(source))
    assert file.read_bytes() == DATA


def test_a_damaged_installed_package_is_an_error(
    source: WheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", DATA[::-1])
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(CatalogError, match=r"of the installed tiny-model 1.0 is damaged; .*--force-reinstall"):
        fetch(entry(source))


def test_another_version_that_is_installed_is_not_used(
    source: WheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", version="2.0")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert locate(entry(source)) is None


@pytest.mark.usefixtures("copied")
def test_remove_frees_our_copy(source: WheelSource) -> None:
    place = fetch(entry(source))
    assert remove(entry(source)) == len(DATA)
    assert not place.parent.exists() and locate(entry(source)) is None
    with pytest.raises(CatalogError, match="nothing to delete"):
        remove(entry(source))


def test_a_pip_in_the_current_folder_is_not_run(
    source: WheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('not the real pip')")
    monkeypatch.chdir(tmp_path)
    assert fetch(entry(source)).read_bytes() == DATA


def without(*names: str) -> Callable[[str], object]:
    return lambda name: None if name in names else importlib.util.find_spec(name)


def test_an_environment_without_pip_uses_the_one_that_python_carries(
    source: WheelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not list(Path(os.path.dirname(os.__file__), "ensurepip/_bundled").glob("pip-*.whl")):  # noqa: PTH120
        pytest.skip("this Python carries no pip")
    monkeypatch.setattr(fetch_wheel, "find_spec", without("pip"))
    assert fetch_wheel.pip().endswith(".whl")
    assert fetch(entry(source)).read_bytes() == DATA


def test_no_pip_at_all_is_an_error_with_a_remedy(source: WheelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_wheel, "find_spec", without("pip", "ensurepip"))
    with pytest.raises(CatalogError, match=r"this Python has no pip; .*ensurepip"):
        fetch(entry(source))


def test_the_default_model_pins_the_real_file(smollm2_gguf: Path) -> None:
    pinned = resolve(None).source
    assert isinstance(pinned, WheelSource)
    assert pinned.member_bytes == smollm2_gguf.stat().st_size
    assert pinned.member_sha256 == hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest()
    assert pinned.member.endswith("/" + smollm2_gguf.name)
