"""Does a model fit? What the machine can give, and what weights, cache and workspace need."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llamachat.core.spec import ModelSpec
from llamachat.errors import DoesNotFitError
from llamachat.system.amounts import size as size

DEFAULT_CONTEXT = 8192  # a model made for more gets this many tokens unless --ctx-size says otherwise
SPAN = 64  # elements of a value in 4 bits that share a scale and a minimum
WORKSPACE = 256 << 20  # interpreter, libraries, activations of one prefill chunk, logits


@dataclass(frozen=True)
class Remedies:
    """What whoever wants a model loaded can change of what it takes, in the words of where they are ({}: a number); None where
    they cannot."""

    context: str | None = "--ctx-size {}"
    kv_bits: str | None = "--kv-bits {}"
    force: str | None = "--force"


FLAGS = Remedies()  # of the commands that answer and read


@dataclass(frozen=True)
class Plan:
    """Bytes a run needs, and bytes there are."""

    weights: int
    kv: int
    workspace: int
    available: int
    slots: int  # tokens of context that `kv` is for
    kv_bits: int = 16
    active: int | None = None  # of the weights, bytes that a token reads; None: all
    place: str = "memory"  # whose bytes these are, for people

    @property
    def needed(self) -> int:
        return self.weights + self.kv + self.workspace

    @property
    def fits(self) -> bool:
        return self.needed <= self.available

    @property
    def fits_active(self) -> bool:
        """Whether that part of a mixture fits that a token reads; the rest can stay on the disk until it is needed."""
        return self.active is not None and self.needed - self.weights + self.active <= self.available

    @property
    def largest_context(self) -> int:
        """Tokens of context that would fit, in whole 256s; 0 when not even the weights do."""
        room = self.available - self.weights - self.workspace
        return max(0, room * self.slots // self.kv // 256 * 256)


def plan(
    weights: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    slots: int,
    kv_bits: int = 16,
    workspace: int = WORKSPACE,
    available: int | None = None,
) -> Plan:
    """`weights` and `workspace` in bytes; `available` is measured unless given."""
    kv = kv_bytes(layers, kv_heads, head_dim, slots, kv_bits)
    return Plan(weights, kv, workspace, available_memory() if available is None else available, slots, kv_bits)


def active_bytes(spec: ModelSpec, sizes: Mapping[str, int]) -> int | None:
    """Of weights of these sizes, the bytes that one token reads: all but the experts not picked, and the embedding where it is
    only looked up in. None for a model without experts, which reads all."""
    if spec.experts is None:
        return None
    idle = () if spec.tied_head else ("model.embed_tokens.weight",)
    chosen = sum(size for name, size in sizes.items() if ".mlp.experts." in name)
    rest = sum(size for name, size in sizes.items() if ".mlp.experts." not in name and name not in idle)
    return rest + chosen * spec.experts.per_token // spec.experts.count


def kv_bytes(layers: int, kv_heads: int, head_dim: int, slots: int, bits: int) -> int:
    """Of the keys and values of so many tokens; a vector (one head, one token) in 8 bits carries one float32 scale. Beside values
    in 4 bits, keys have 8."""
    key = head_dim * max(bits, 8) // 8 + (4 if bits <= 8 else 0)
    value = nibble_bytes(head_dim) if bits == 4 else key
    return layers * kv_heads * (key + value) * slots


def nibble_bytes(head_dim: int) -> int:
    """Of a value in 4 bits, whole groups of 32: with a scale and a minimum in float16 for each 64 elements."""
    return 16 * -(-head_dim // 32) + 4 * -(-head_dim // SPAN)


def check(plan: Plan, force: bool = False, remedies: Remedies = FLAGS) -> None:
    """Raises DoesNotFitError, which says what to change, unless the plan fits or is forced."""
    if not (plan.fits or force):
        raise DoesNotFitError(f"the model needs {describe(plan)}", "it was not loaded", f"try {advice(plan, remedies)}")


def advice(plan: Plan, remedies: Remedies = FLAGS) -> str:
    """What to change where a plan does not fit."""
    tries = list[str]()
    if remedies.context and plan.largest_context:
        tries.append(remedies.context.format(plan.largest_context))
    if remedies.kv_bits:
        saved = {bits: plan.kv - plan.kv * share // plan.kv_bits for bits, share in ((8, 8), (4, 7))}
        fitting = [bits for bits, less in saved.items() if bits < plan.kv_bits and plan.needed - less <= plan.available]
        tries += [remedies.kv_bits.format(bits) for bits in fitting[:1]]
    tries.append("a smaller model or fewer bits (llamachat quantize)")
    if remedies.force:
        rest = f"(what a token reads, {size(plan.active or 0)}, fits; other experts come from the disk when needed)"
        tries.append(f"{remedies.force} {rest if plan.fits_active else 'to try all the same'}")
    return " or ".join(filter(None, [", ".join(tries[:-1]), tries[-1]]))


def describe(plan: Plan) -> str:
    read = "" if plan.active is None else f" of which a token reads {size(plan.active)}"
    parts = (
        f"weights {size(plan.weights)}{read}, cache of {plan.slots} tokens {size(plan.kv)}, work {size(plan.workspace)}"
    )
    return f"{size(plan.needed)} of {plan.place} ({parts}), and {size(plan.available)} is free"


@contextmanager
def no_room_is_memory_error() -> Iterator[None]:
    """torch's allocator has no error of its own."""
    try:
        yield
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise MemoryError from error


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping: what the kernel calls available, or less where a cgroup limits us."""
    return min([_machine(root), *_cgroup_rooms(root)])


def _machine(root: Path) -> int:
    meminfo = root / "proc/meminfo"
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    if sys.platform == "win32":
        return _windows()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS frees its cached pages on demand


def _cgroup_rooms(root: Path) -> list[int]:
    """Room in each control group (v1 or v2) that holds this process and has a limit; file cache is reclaimable."""
    membership = root / "proc/self/cgroup"
    rooms = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "sys/fs/cgroup/memory"
        else:
            continue
        group = base / path.strip("/")
        for folder in (group, *group.parents):  # a container may see its own group as the mount's root
            if folder.is_relative_to(base):
                rooms += _room(folder, *names)
    return rooms


def _room(group: Path, limit: str, usage: str, reclaimable: str) -> list[int]:
    """[bytes] left in this group, or [] when it has no limit."""
    try:
        most = (group / limit).read_text().strip()
        used = int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # no such controller here
        return []
    return [] if most == "max" else [max(0, int(most) - used + int(stat.get(reclaimable, 0)))]


if sys.platform == "win32":

    def _windows() -> int:
        import ctypes

        class Status(ctypes.Structure):
            _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32)] + [
                (name, ctypes.c_uint64) for name in ("total", "available", "a", "b", "c", "d", "e")
            ]

        status = Status(length=ctypes.sizeof(Status))
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.available)
