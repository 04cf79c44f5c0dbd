"""What the machine has, what a model needs, and what to change when it is too little."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.core.spec import QuantConfig
from llamachat.engines.memory import WORKSPACE, Plan, Remedies, advice, available_memory, check, plan, size
from llamachat.errors import DoesNotFitError
from llamachat.models.catalog import ModelEntry, load_catalog, resolve
from llamachat.models.fit import entry_plan, fits, require
from llamachat.models.sources import HubSource, LocalPath

GiB = 1 << 30
MEMINFO = "MemTotal:       33554432 kB\nMemFree:         1048576 kB\nMemAvailable:   16777216 kB\n"


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A /proc and /sys as a process would see them."""
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def v2(group: str, limit: str, used: int, inactive: int = 0) -> dict[str, str]:
    base = f"sys/fs/cgroup{group}/memory."
    stat = f"anon 5\ninactive_file {inactive}\n"
    return {base + "max": f"{limit}\n", base + "current": f"{used}\n", base + "stat": stat}


def v1(group: str, limit: int, used: int, inactive: int = 0) -> dict[str, str]:
    base = f"sys/fs/cgroup/memory{group}/memory."
    stat = f"inactive_file 1\ntotal_inactive_file {inactive}\n"
    return {base + "limit_in_bytes": f"{limit}\n", base + "usage_in_bytes": f"{used}\n", base + "stat": stat}


@pytest.mark.parametrize(
    "cgroup, files, expected",
    [
        ("", {}, 16 * GiB),
        ("0::/\n", {}, 16 * GiB),
        ("0::/a\n", v2("/a", "max", GiB), 16 * GiB),
        ("0::/a\n", v2("/a", str(4 * GiB), GiB), 3 * GiB),
        ("0::/a\n", v2("/a", str(4 * GiB), 3 * GiB, inactive=2 * GiB), 3 * GiB),
        ("0::/a\n", v2("/a", str(64 * GiB), GiB), 16 * GiB),
        ("0::/a\n", v2("/a", str(GiB), 2 * GiB), 0),
        ("0::/a/b\n", v2("/a/b", "max", 1) | v2("/a", str(2 * GiB), GiB), GiB),
        ("0::/not/seen/here\n", v2("", str(5 * GiB), GiB), 4 * GiB),
        ("3:cpu:/x\n4:memory:/a\n0::/\n", v1("/a", 3 * GiB, 2 * GiB, inactive=GiB), 2 * GiB),
        ("4:cpuset,memory:/docker/1\n", v1("", 3 * GiB, GiB), 2 * GiB),
        ("4:memory:/a\n", v1("/a", 9223372036854771712, GiB), 16 * GiB),
    ],
)
def test_memory_is_what_the_kernel_and_every_control_group_leave(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: int
) -> None:
    assert available_memory(machine(tmp_path, cgroup, files)) == expected


def test_without_proc_it_is_the_physical_memory(tmp_path: Path) -> None:
    assert GiB // 4 < available_memory() <= available_memory(tmp_path)


@pytest.mark.parametrize("bits, dtype", [(16, np.float16), (32, np.float32), (8, np.int8)])
def test_the_cache_is_counted_as_its_arrays_would_be(bits: int, dtype: type[np.generic]) -> None:
    layers, heads, dim, slots = 3, 2, 64, 100
    arrays = [np.empty((2, layers, slots, heads, dim), dtype)]
    arrays += [np.empty((2, layers, slots, heads), np.float32)] if bits == 8 else []
    assert plan(7, layers, heads, dim, slots, bits, 5, available=1) == Plan(
        7, sum(array.nbytes for array in arrays), 5, 1, slots, bits
    )


def test_the_cache_of_llama_8b_is_128_kib_a_token() -> None:
    found = entry_plan(resolve("llama-3.1-8b"), ctx=1)
    assert found is not None and found.kv == 128 << 10


plans = st.builds(
    Plan,
    weights=st.integers(0, 64 * GiB),
    kv=st.integers(1, 64 * GiB),
    workspace=st.integers(0, GiB),
    available=st.integers(0, 64 * GiB),
    slots=st.integers(1, 200_000),
    kv_bits=st.sampled_from([4, 8, 16, 32]),
)


@given(plans)
def test_the_suggested_context_fits_and_one_step_more_does_not(found: Plan) -> None:
    def needed(slots: int) -> float:
        return found.weights + found.workspace + found.kv * slots / found.slots

    largest = found.largest_context
    assert largest % 256 == 0
    assert largest == 0 or needed(largest) <= found.available * (1 + 1e-9)
    assert needed(largest + 256) > found.available * (1 - 1e-9)


@given(plans)
def test_check_refuses_exactly_what_does_not_fit_unless_forced(found: Plan) -> None:
    check(found, force=True)
    if found.needed <= found.available:
        check(found)
        return
    with pytest.raises(DoesNotFitError) as caught:
        check(found)
    message = str(caught.value)
    assert caught.value.exit_code == 4 and "\n" not in message
    assert all(part in message for part in ("the model needs", "is free", "it was not loaded", "--force"))
    assert ("--ctx-size" in message) == (found.largest_context > 0)


def test_the_error_names_the_numbers_and_every_remedy() -> None:
    found = entry_plan(resolve("llama-3.1-8b"), ctx=65536, available=10 * GiB)
    assert found is not None
    with pytest.raises(DoesNotFitError) as caught:
        check(found)
    assert str(caught.value) == (
        "the model needs 13.8 GB of memory (weights 4.9 GB, cache of 65536 tokens 8.6 GB, work 268 MB), and 10.7 GB "
        "is free; it was not loaded; try --ctx-size 42240, --kv-bits 8, a smaller model or fewer bits (llamachat "
        "quantize) or --force to try all the same"
    )


def test_only_what_can_be_changed_is_advised() -> None:
    found = Plan(9 * GiB, GiB, 0, 9 * GiB + GiB // 2, 8192)
    model = "a smaller model or fewer bits (llamachat quantize)"
    assert advice(found, Remedies(None, None, None)) == model
    assert advice(found, Remedies("max_seq_len={}", None, None)) == f"max_seq_len=4096 or {model}"
    forced = advice(found, Remedies(None, "kv_bits={}", "force=True"))
    assert forced == f"kv_bits=8, {model} or force=True to try all the same"


def test_a_smaller_cache_is_not_advised_where_it_would_not_help() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        check(Plan(weights=100 * GiB, kv=GiB, workspace=0, available=GiB, slots=8192))
    assert "--kv-bits" not in str(caught.value) and "--ctx-size" not in str(caught.value)


def test_context_is_the_models_own_up_to_8192_or_as_asked() -> None:
    def slots(name: str, ctx: int | None = None) -> int:
        found = entry_plan(resolve(name), ctx)
        assert found is not None
        return found.slots

    assert (slots("tinyllama-1.1b"), slots("llama-3.2-1b"), slots("llama-3.2-1b", 100)) == (2048, 8192, 100)


def test_weights_are_counted_as_quantized_with_the_embedding_in_16_bits(smollm2_gguf: Path) -> None:
    small, entry = entry_plan(resolve(None)), resolve("llama-3.1-8b")
    floats = replace(entry, source=HubSource("a/b"), format="hf", quant_config=QuantConfig("int4"))
    big, gguf = entry_plan(floats), entry_plan(entry)
    assert small is not None and small.weights == smollm2_gguf.stat().st_size and small.workspace == WORKSPACE
    embedding = 128256 * 4096
    assert big is not None and big.weights == int(embedding * 2 + (8030261248 - embedding) * 4.5 / 8)
    assert gguf is not None and gguf.weights == entry.download_bytes


def test_a_gguf_file_of_which_nothing_is_known_but_its_size_fits_or_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ModelEntry("x", HubSource("a/b", file="x.gguf"), format="gguf", download_bytes=4 * GiB)
    monkeypatch.setattr("llamachat.models.fit.available_memory", lambda: 5 * GiB)
    assert fits(entry) is False and fits(replace(entry, download_bytes=3 * GiB)) and fits(resolve(None))
    assert fits(replace(entry, download_bytes=None)) is fits(replace(entry, format=None)) is None
    require(entry, force=True)
    require(replace(entry, download_bytes=None))
    with pytest.raises(DoesNotFitError, match=r"x has 4\.3 GB of weights, and 5\.4 GB of memory is free; it was not"):
        require(entry)


def test_an_entry_without_a_shape_has_no_plan() -> None:
    assert entry_plan(ModelEntry("x", LocalPath(Path("x")))) is None


@pytest.mark.parametrize("kv_bits, asked, expected", [(None, None, 16), (8, None, 8), (8, 32, 32)])
def test_bits_of_the_cache_are_as_asked_or_as_the_entry_says(
    kv_bits: int | None, asked: int | None, expected: int
) -> None:
    shape = load_catalog().entries["llama-3.2-1b"].shape
    quant = QuantConfig("int8", kv_bits=kv_bits)  # type: ignore[arg-type]
    found = entry_plan(ModelEntry("x", HubSource("a/b"), shape=shape, quant_config=quant), kv_bits=asked)
    assert found is not None and found.kv_bits == expected


@pytest.mark.parametrize(
    "count, text", [(0, "0 kB"), (1499, "1 kB"), (92871040, "93 MB"), (10**9 - 1, "1000 MB"), (1_260_000_000, "1.3 GB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size(count) == text
