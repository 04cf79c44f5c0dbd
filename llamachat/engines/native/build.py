"""Compiles c/*.c into one shared library; used by the wheel's build (hatch_build.py) and, in a checkout, on first use.

Only the standard library is imported: at build time nothing else is there. The kernels are compiled for the best instruction
set that this processor has and for any ("portable"), which takes seconds; or, for a wheel that others are to have too, once for
each set of the processor's family. The library picks among those it has when it runs (c/cpu.c). One that was compiled for
another kind of processor (a folder was moved, a disk is shared) is compiled anew where there is a compiler, else used as it is.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).parent / "c"
CPUINFO = Path("/proc/cpuinfo")
LIBRARY = "libllamachat." + {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c"
KERNELS = {  # machine -> name of the kernels, best first -> flags
    "x86_64": {
        "amx": AVX512 + " -mamx-tile -mamx-int8",
        "avx512": AVX512,
        "avxvnni": "-mavx2 -mfma -mf16c -mavxvnni",
        "avx2": "-mavx2 -mfma -mf16c",
        "portable": "-O1 -DSMALL",
    },
    "aarch64": {"neon": "-march=armv8.2-a+dotprod", "portable": "-O1"},
}

# compiled once for each set of kernels, side by side, the longest first; products of one token are as quick without a pass
SET = {"few": "", "products": "-fno-gcse", "panels": "", "opened": "", "kernels": ""}
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
    beside = ["-Wl,-rpath,$ORIGIN"] if sys.platform == "linux" else []
    sets = {name: flags for name, flags in _family().items() if kernels is None or name in kernels}
    jobs = {
        f"{part}-{name}": [str(SOURCES / f"{part}.c"), "-ffp-contract=fast", f"-DISA={name}", *f"{how} {flags}".split()]
        for name, flags in sets.items()
        for part, how in SET.items()
    }
    jobs |= {name: [str(SOURCES / f"{name}.c"), "-ffp-contract=off"] for name in PARTS}
    jobs["cpu"].append(f"-DKERNEL_SETS={''.join(f'X({name})' for name in sets)}")
    objects = {name: target.parent / f"{name}.o" for name in jobs}
    _run_all([[*common, *job, "-c", "-o", str(objects[name])] for name, job in jobs.items()], environment)
    _run_all([[*common, "-shared", *map(str, objects.values()), *beside, "-lm", "-o", str(target)]], environment)
    for path in objects.values():
        path.unlink()


def _family() -> dict[str, str]:
    """The sets of kernels for this kind of machine, best first."""
    return KERNELS.get(machine(), {"portable": "-O1"})


def for_this_processor() -> dict[str, str]:
    """Of the family's sets the best that runs here, and the one that runs anywhere; all where the system does not tell."""
    features = _features()
    if not features:
        return _family()
    best = next(name for name, flags in _family().items() if _needed(flags) <= features)
    return {name: flags for name, flags in _family().items() if name in (best, "portable")}


def _features() -> set[str]:
    """What Linux says that an x86 processor can, each as `_plain` writes it; nothing elsewhere."""
    try:
        with CPUINFO.open() as file:
            about = file.read(1 << 14)  # the first processor: the whole takes long where there are many
    except OSError:
        return set()
    found = next((line for line in about.splitlines() if line.startswith("flags")), "")
    return set(map(_plain, found.partition(":")[2].split()))


def _needed(flags: str) -> set[str]:
    return {_plain(flag) for flag in flags.split() if flag.startswith("-m")}


def _plain(feature: str) -> str:
    """A compiler's flag (-mavx512vnni) and Linux's name (avx512_vnni) of the same thing, alike."""
    return feature.removeprefix("-m").replace("-", "").replace("_", "")


def wanted(every: bool = False) -> tuple[str, dict[str, str]]:
    """A library's name, which says for which processors it is, and the sets of kernels in it. `every`: those of the family."""
    here = for_this_processor()
    if every or here == _family():
        return LIBRARY, _family()
    return f"{next(iter(here))}-{LIBRARY}", here


def tag(libraries: Sequence[Path]) -> str:
    """A wheel's platform: of libraries that need but each other and glibc, the oldest one that has what they call (PEP 600)."""
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    data = b"".join(library.read_bytes() for library in libraries)
    versions = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.([0-9]+)", data)]
    needs = {name.decode() for name in re.findall(rb"\0(lib[\w.+-]+\.so\.[0-9]+)(?=\0)", data)}
    others = (
        needs - {library.name for library in libraries} - {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2"}
    )
    alone = platform.startswith("linux_") and versions and not others
    return platform.replace("linux", f"manylinux_2_{max(versions)}", 1) if alone else platform


def library() -> Path:
    """The library that came with the package, else one compiled from these sources and kept in the user's cache folder.

    A checkout has no build step in which to compile; the first start does it, in some ten seconds, and an edited source
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
        compile_library(work / LIBRARY, kernels=wanted()[1], environment=environment.of_compiler())
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
    """Where the library for this processor lies, or is to lie: in the package, else in the cache folder."""
    name = LIBRARY if _is_safe(SOURCES / LIBRARY) else wanted()[0]
    if _is_safe(shipped := SOURCES / name):
        return shipped
    from platformdirs import user_cache_path

    digest = hashlib.sha256(platform.machine().encode() + Path(__file__).read_bytes())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.read_bytes())
    compiled = user_cache_path("llamachat", appauthor=False) / "native" / f"{digest.hexdigest()[:16]}-{name}"
    others = filter(_is_safe, SOURCES.glob(f"*-{LIBRARY}")) if not _is_safe(compiled) and compiler() is None else ()
    return next(iter(others), compiled)  # one for another processor runs here too, if slower


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


def runtime(environment: Mapping[str, str] | None = None) -> Path | None:
    """GCC's OpenMP, which a library for others wants beside it: a machine without a compiler often lacks it. Its licence allows
    that (the GCC Runtime Library Exception)."""
    cc = compiler()
    if cc is None:
        return None
    said = subprocess.run(
        [cc, "-print-file-name=libgomp.so.1"], capture_output=True, text=True, check=False, env=environment
    )
    found = Path(said.stdout.strip())
    return found if found.is_absolute() and found.is_file() else None


def _run_all(commands: Sequence[Sequence[str]], environment: Mapping[str, str] | None) -> None:
    """In this order, as many at once as there are processors. Raises BuildError with what the first that failed has said."""
    from concurrent.futures import ThreadPoolExecutor

    def run(command: Sequence[str]) -> str:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
        )
        return (done.stdout.strip() or f"{command[0]} failed") if done.returncode else ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = [said for said in pool.map(run, commands) if said]
    if failed:
        raise BuildError(failed[0])
