"""Downloads from a hub: the real huggingface_hub against a stand-in server that can misbehave."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Hub, reachable

from llamachat.errors import CatalogError
from llamachat.models.catalog import ModelEntry
from llamachat.models.fetch import blobs, disk_usage, fetch, locate, remove
from llamachat.models.sources import HubSource

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
ENTRY = ModelEntry("tiny", HubSource("owner/tiny"), format="hf")
MiB = 1 << 20


def files() -> dict[str, bytes]:
    """What a repository holds: what we need, and copies of the weights that we do not."""
    noise = random.Random(7)
    weights = {shard: noise.randbytes(3 * MiB + 5) for shard in SHARDS}
    index = json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()
    others = {"consolidated.safetensors": b"x" * 99, "onnx/model.safetensors": b"y" * 99, "README.md": b"z"}
    small = {"config.json": b"{}", "generation_config.json": b"{ }", "tokenizer.json": b"[1]"}
    small |= {"1_Pooling/config.json": b"{  }", "modules.json": b"[]"}
    return {"model.safetensors.index.json": index, **others, **small, **weights, "tiny.gguf": noise.randbytes(999)}


SMALL = {"model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json", "modules.json"}
SMALL |= {"1_Pooling/config.json"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with reachable(Hub("owner/tiny", files()), tmp_path, monkeypatch) as server:
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def leftovers(tmp_path: Path) -> list[Path]:
    return list(tmp_path.rglob("*.incomplete"))


def test_fetch_brings_the_needed_files_into_the_shared_cache_and_no_copies(hub: Hub, tmp_path: Path) -> None:
    assert locate(ENTRY) is None
    seen: list[tuple[str, int, int | None]] = []
    place = fetch(ENTRY, lambda *step: seen.append(step))
    assert place == locate(ENTRY) == tmp_path / f"hf/hub/models--owner--tiny/snapshots/{COMMIT}"
    assert contents(place) == {name: data for name, data in hub.files.items() if name in SMALL or name in SHARDS}
    assert disk_usage(ENTRY) >= 2 * len(hub.files[SHARDS[0]])
    steps = [done for what, done, total in seen if what == "fetching owner/tiny"]
    assert steps == sorted(steps) and steps[-1] == sum(len(hub.files[name]) for name in (*SMALL, *SHARDS))


def test_a_second_fetch_asks_no_network_and_reads_no_weights(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    place = fetch(ENTRY)
    hub.log.clear()
    monkeypatch.setattr("llamachat.models.fetch.verified.digest", None)
    assert fetch(ENTRY) == place and fetch(ENTRY, offline=True) == place
    assert hub.log == []


def test_huggingface_hub_itself_finds_what_we_fetched(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    place = fetch(ENTRY)
    found = hf_hub_download("owner/tiny", SHARDS[1], cache_dir=tmp_path / "hf/hub", local_files_only=True)
    assert found == str(place / SHARDS[1])


def test_what_huggingface_hub_fetched_is_verified_and_used_offline(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    place = snapshot_download("owner/tiny", cache_dir=tmp_path / "hf/hub")
    assert fetch(ENTRY, offline=True) == Path(place)


def test_what_another_tool_fetched_is_completed_of_its_own_commit(hub: Hub, tmp_path: Path) -> None:
    """A later commit, of so many GB, is nothing that anyone has asked for."""
    from huggingface_hub import snapshot_download

    place = Path(snapshot_download("owner/tiny", cache_dir=tmp_path / "hf/hub"))
    older = place.rename(place.with_name("e" * 40))
    (older.parents[1] / "refs/main").write_text(older.name)
    with pytest.raises(CatalogError, match=f"owner/tiny has no revision {older.name}"):
        fetch(ENTRY)
    assert f"/api/models/owner/tiny/revision/{older.name}" in [path for _, path, _ in hub.log]


@pytest.mark.parametrize("name", [SHARDS[0], "config.json"])
def test_a_damaged_file_of_another_tool_is_found_and_deleted(hub: Hub, tmp_path: Path, name: str) -> None:
    """huggingface_hub downloads the changed byte without a complaint (its issue 3643)."""
    from huggingface_hub import snapshot_download

    hub.flipped = {name}
    place = Path(snapshot_download("owner/tiny", cache_dir=tmp_path / "hf/hub"))
    assert (place / name).read_bytes() != hub.files[name]
    with pytest.raises(CatalogError, match=f"{name} of owner/tiny is damaged"):
        fetch(ENTRY, offline=True)
    hub.flipped = set()
    assert (fetch(ENTRY) / name).read_bytes() == hub.files[name]


def test_wrong_bytes_never_get_a_name_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    hub.flipped = {SHARDS[1]}
    with pytest.raises(CatalogError, match=f"{SHARDS[1]} came with a wrong checksum; it was thrown away; fetch it"):
        fetch(ENTRY)
    assert locate(ENTRY) is None and leftovers(tmp_path) == []
    assert [file for file in tmp_path.rglob("blobs/*") if file.read_bytes() not in hub.files.values()] == []


def test_a_broken_connection_is_resumed_where_it_broke(hub: Hub) -> None:
    hub.cut = [MiB + 3, 17]
    assert (fetch(ENTRY) / SHARDS[0]).read_bytes() == hub.files[SHARDS[0]]
    starts = [int(re.findall(r"\d+", span or "")[0]) for span in hub.sent(SHARDS[0])]
    assert len(starts) == 3 and 0 == starts[0] < starts[1] <= starts[2]


def test_a_server_without_ranges_starts_over(hub: Hub) -> None:
    hub.whole_only, hub.cut = True, [2 * MiB]
    assert (fetch(ENTRY) / SHARDS[0]).read_bytes() == hub.files[SHARDS[0]]


def test_a_server_that_sends_nothing_is_given_up(hub: Hub) -> None:
    hub.cut = [0] * 99
    with pytest.raises(CatalogError, match=r"cannot be reached .*check the network and run it again"):
        fetch(ENTRY)
    assert len(hub.sent(SHARDS[0])) == blobs.ATTEMPTS + 1


def test_after_kill_9_nothing_broken_is_in_place_and_the_next_try_resumes(hub: Hub, tmp_path: Path) -> None:
    """In a process of its own, which also shows that HF_ENDPOINT and HF_HOME are heeded."""
    code = """if True:
        import os, signal
        from llamachat.models.catalog import ModelEntry
        from llamachat.models.sources import HubSource
        from llamachat.models.fetch import fetch
        def progress(what, done, total):
            if done >= 2 << 20:
                os.kill(os.getpid(), signal.SIGKILL)
        fetch(ModelEntry("tiny", HubSource("owner/tiny"), format="hf"), progress)"""
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "0"})
    assert killed.returncode == -signal.SIGKILL
    assert locate(ENTRY) is None and [f.stat().st_size for f in leftovers(tmp_path)] == [2 * MiB]
    assert (fetch(ENTRY) / SHARDS[0]).read_bytes() == hub.files[SHARDS[0]]
    assert hub.sent(SHARDS[0])[-1] == f"bytes={2 * MiB}-{3 * MiB + 4}" and leftovers(tmp_path) == []


def test_one_gguf_file_of_a_repository(hub: Hub) -> None:
    entry = ModelEntry("one", HubSource("owner/tiny", file="tiny.gguf"))
    place = fetch(entry)
    assert place.read_bytes() == hub.files["tiny.gguf"] and place == locate(entry) == fetch(entry, offline=True)
    assert locate(ENTRY) is None and hub.sent(SHARDS[0]) == []


def test_a_revision_by_commit(hub: Hub) -> None:
    assert fetch(ModelEntry("pinned", HubSource("owner/tiny", revision=COMMIT), format="hf")).name == COMMIT


@pytest.mark.parametrize(
    "setup, source, message",
    [
        ({"gated": True}, ENTRY.source, "owner/tiny is gated; .*accept its licence at .*/owner/tiny, and set HF_TOKEN"),
        ({"hidden": True}, ENTRY.source, "no repository owner/tiny; .*HF_TOKEN if the repository is private"),
        ({}, HubSource("owner/none"), "no repository owner/none"),
        ({}, HubSource("owner/tiny", "v9"), "owner/tiny has no revision v9"),
        ({}, HubSource("owner/tiny", file="no.gguf"), "owner/tiny has no no.gguf"),
        ({"files": {"config.json": b"{}"}}, ENTRY.source, "owner/tiny has no model.*safetensors"),
        ({"files": {"model.safetensors": b"x"}}, ENTRY.source, "owner/tiny is incomplete: it lacks config.json"),
        ({"status": 403}, ENTRY.source, "answers 403 for owner/tiny; .*check the token in HF_TOKEN"),
        ({"status": 500}, ENTRY.source, "answers 500 for owner/tiny; .*try again later"),
        ({"status": 200}, ENTRY.source, "does not answer as a hub: .*; the model was not fetched; check HF_ENDPOINT"),
    ],
)
def test_each_refusal_is_one_line_with_a_remedy(
    hub: Hub, setup: dict[str, object], source: HubSource, message: str
) -> None:
    vars(hub).update(setup)
    with pytest.raises(CatalogError, match=message) as caught:
        fetch(ModelEntry("tiny", source))
    assert "\n" not in str(caught.value)


LFS = {"rfilename": "model.safetensors", "lfs": {"sha256": "0" * 64, "size": 9}}
SHAPES: list[Any] = [
    [],
    {},
    "x",
    5,
    None,
    {"id": 5, "siblings": {}},
    *({"id": "x", "siblings": [file]} for file in (5, {"rfilename": None}, {**LFS, "lfs": [1]})),
    *(
        {"id": "x", "siblings": [{**LFS, "lfs": lfs}]}
        for lfs in ({"sha256": 5, "size": 9}, {"sha256": "0" * 64}, {"size": "9"})
    ),
    *({"id": "x", "siblings": [LFS], "lastModified": time} for time in (7, "yesterday")),
]


@pytest.mark.parametrize("answer", SHAPES, ids=str)
def test_an_answer_of_any_other_shape_is_one_line(hub: Hub, answer: Any) -> None:
    hub.status, hub.body = 200, json.dumps(answer).encode()
    with pytest.raises(CatalogError) as caught:
        fetch(ENTRY)
    assert "does not answer as a hub" in str(caught.value) or "owner/tiny has no model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cache_that_holds_nonsense_is_as_if_it_were_not_there(hub: Hub, tmp_path: Path) -> None:
    ref = tmp_path / "hf/hub/models--owner--tiny/refs/main"
    ref.parent.mkdir(parents=True)
    ref.write_bytes(b"\xff\xfe\n")
    assert locate(ENTRY) is None
    snapshot = ref.parent.parent / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    ref.write_text(COMMIT)
    for index in (b"[", b"5", b'{"weight_map": 5}', b'{"weight_map": {"a": []}}', b"[" * 100_000, b"\xff"):
        (snapshot / "model.safetensors.index.json").write_bytes(index)
        assert locate(ENTRY) is None


def test_a_token_that_was_not_granted_access_is_told_to_accept_the_licence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(CatalogError, match="is gated"):
        fetch(ENTRY)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert locate(ModelEntry("tiny", ENTRY.source)) is None and fetch(ENTRY).is_dir()


def test_without_a_network_the_error_names_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CatalogError, match=r"the hub cannot be reached .*--offline"):
        fetch(ENTRY)


def test_offline_is_honoured_as_flag_and_as_variable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CatalogError, match="not on this machine; --offline forbids"):
        fetch(ENTRY, offline=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CatalogError, match="HF_HUB_OFFLINE is set"):
        fetch(ENTRY)
    assert hub.log == []


def test_a_full_disk_is_known_before_anything_is_sent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": MiB}))
    with pytest.raises(CatalogError, match=r"owner/tiny needs 6 MB of disk and .* has 1 MB"):
        fetch(ENTRY)
    assert hub.sent(SHARDS[0]) == []


def test_remove_deletes_the_repository_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    fetch(ENTRY)
    neighbour = tmp_path / "hf/hub/models--owner--tiny2"
    neighbour.mkdir()
    before = disk_usage(ENTRY)
    assert remove(ENTRY) == before > 6 * MiB
    assert locate(ENTRY) is None and disk_usage(ENTRY) == 0 and neighbour.is_dir()
    with pytest.raises(CatalogError, match="not on this machine"):
        remove(ENTRY)


@pytest.mark.parametrize("weights", [{"a": "../../../etc/passwd"}, {"a": 3}, [], {"a": "model-missing.safetensors"}])
def test_an_index_that_names_what_is_not_there_is_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: object
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / f"models--owner--tiny/snapshots/{COMMIT}"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--tiny/refs").mkdir()
    (tmp_path / "models--owner--tiny/refs/main").write_text(COMMIT)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    assert locate(ENTRY) == snapshot
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert locate(ENTRY) is None


@pytest.mark.parametrize("ref", ["../../../..", "", "x" * 40, "/"])
def test_a_ref_that_is_no_commit_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--owner--tiny/refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(ref)
    assert locate(ENTRY) is None
