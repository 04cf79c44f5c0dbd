"""Compiles c/*.c into one shared library; used by the wheel's build (hatch_build.py) and, in a checkout, on first use.

Only the standard library is imported: at build time nothing else is there. The kernels are compiled once per instruction set
of the processor's family; the library picks among them when it runs (c/cpu.c), so one file serves all such machines.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).parent / "c"
LIBRARY = "libllamachat." + {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c"
KERNELS = {  # machine -> name of the kernels, best first -> flags
    "x86_64": {
        "amx": AVX512 + " -mamx-tile -mamx-int8",
        "avx512": AVX512,
        "avxvnni": "-mavx2 -mfma -mf16c -mavxvnni",
        "avx2": "-mavx2 -mfma -mf16c",
        "portable": "",
    },
    "aarch64": {"neon": "-march=armv8.2-a+dotprod", "portable": ""},
}


# compiled once, beside the kernels
PARTS = (
    "abi",
    "alloc",
    "attention",
    "blocks",
    "cpu",
    "engine",
    "faults",
    "kv",
    "lowrank",
    "mixture",
    "pack",
    "probe",
    "single",
    "threads",
)


class BuildError(Exception):
    """There is no compiler, or it refused; `str()` is what it said."""


def compiler() -> str | None:
    """The C compiler: $CC, else cc, gcc or clang."""
    return next(
        (path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := shutil.which(name))), None
    )


def compile_library(
    target: Path,
    extra: Sequence[str] = (),
    kernels: Collection[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Builds the library at `target`, whose folder holds the objects meanwhile; `extra` flags go to each command.

    kernels: only these sets of them. environment: the compiler's; None is ours, as a wheel's build has it.
    """
    cc = compiler()
    if cc is None:
        raise BuildError("no C compiler found")
    common = [cc, *FLAGS, *_openmp(cc, target.parent, environment), *extra]
    jobs = {name: [str(SOURCES / f"{name}.c"), "-ffp-contract=off"] for name in PARTS}
    sets = KERNELS.get(machine(), {"portable": ""})
    sets = {name: flags for name, flags in sets.items() if kernels is None or name in kernels}
    jobs["cpu"].append(f"-DKERNEL_SETS={''.join(f'X({name})' for name in sets)}")
    for name, flags in sets.items():
        jobs[name] = [str(SOURCES / "kernels.c"), "-ffp-contract=fast", f"-DISA={name}", *flags.split()]
    objects = {name: target.parent / f"{name}.o" for name in jobs}
    _run_all([[*common, *job, "-c", "-o", str(objects[name])] for name, job in jobs.items()], environment)
    _run_all([[*common, "-shared", *map(str, objects.values()), "-lm", "-o", str(target)]], environment)
    for path in objects.values():
        path.unlink()


def library() -> Path:
    """The library that came with the package, else one compiled from these sources and kept in the user's cache folder.

    A checkout has no build step in which to compile; the first start does it, in some twenty seconds, and an edited source
    makes another name. One that another user has, or could have written, is never taken: it is compiled anew.
    """
    from llamachat.system import environment, private

    target = place()
    if _is_safe(target):
        return target
    work = target.parent / f"build-{os.getpid()}"
    try:
        private.folder(work)
        if trouble := private.trouble(target.parent):
            raise BuildError(f"{trouble}; nothing is run from there")
        compile_library(work / LIBRARY, environment=environment.of_compiler())
        (work / LIBRARY).chmod(private.FOLDER)
        (work / LIBRARY).replace(target)
    except OSError as error:
        raise BuildError(f"{target.parent}: {error.strerror}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def is_compiled() -> bool:
    """False when `library` will have to compile, or to fail."""
    return _is_safe(place())


def _is_safe(file: Path) -> bool:
    """Whether it is there, and nobody else could have put or changed it."""
    from llamachat.system import private

    return file.is_file() and private.trouble(file) is None


def place() -> Path:
    if _is_safe(shipped := SOURCES / LIBRARY):
        return shipped
    from platformdirs import user_cache_path

    digest = hashlib.sha256(platform.machine().encode() + Path(__file__).read_bytes())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.read_bytes())
    return user_cache_path("llamachat", appauthor=False) / "native" / f"{digest.hexdigest()[:16]}-{LIBRARY}"


def machine() -> str:
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def _openmp(cc: str, folder: Path, environment: Mapping[str, str] | None) -> list[str]:
    """-fopenmp where the compiler has it (Apple's has not); else the library runs on one thread."""
    probe = subprocess.run(
        [cc, "-fopenmp", "-x", "c", "-", "-o", str(folder / "probe")],
        input=b"int main(void){return 0;}",
        capture_output=True,
        check=False,
        env=environment,
    )
    (folder / "probe").unlink(missing_ok=True)
    return ["-fopenmp"] if probe.returncode == 0 else []


def _run_all(commands: Sequence[Sequence[str]], environment: Mapping[str, str] | None) -> None:
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        for command in commands
    ]
    said = [process.communicate()[0] for process in running]
    failed = [text for process, text in zip(running, said, strict=True) if process.returncode != 0]
    if failed:
        raise BuildError(failed[0].strip())
