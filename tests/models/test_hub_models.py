"""GGUF repositories of a hub: what a reference brings, finds again and removes; listings that lie; searches."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Hub, reachable, serving

from llamachat.errors import CatalogError, DoesNotFitError, UsageError
from llamachat.models import fetch
from llamachat.models.catalog import ModelEntry, resolve
from llamachat.models.fetch import hub_answers
from llamachat.models.fetch.hub_search import FIELDS, search
from llamachat.models.load import obtain

PARTS = tuple(f"Q8_0/m-Q8_0-{number:05}-of-00002.gguf" for number in (1, 2))
FILES = {
    "m-Q4_K_M.gguf": b"4" * 500, "m-Q3_K_M.gguf": b"3" * 300, "m-IQ2_XXS.gguf": b"2" * 200, "mmproj-F16.gguf": b"m",
    "README.md": b"r", **{name: name.encode() * 20 for name in PARTS},
}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with reachable(Hub("a/b", dict(FILES)), tmp_path, monkeypatch) as server:
        yield server


def room(monkeypatch: pytest.MonkeyPatch, weights: int) -> None:
    """Memory for so many bytes of weights, and the quarter of them that a cache takes."""
    from llamachat.engines.memory import WORKSPACE

    monkeypatch.setattr("llamachat.models.fit.available_memory", lambda: WORKSPACE + weights * 5 // 4)


def test_a_repository_brings_the_best_quant_and_finds_it_again_offline(hub: Hub) -> None:
    entry = resolve("hf:a/b")
    place = fetch.fetch(entry)
    assert place.read_bytes() == FILES["m-Q4_K_M.gguf"] and len(hub.sent(".gguf")) == 1
    hub.log.clear()
    assert fetch.locate(entry) == fetch.fetch(entry, offline=True) == fetch.fetch(entry) == place
    assert fetch.locate(resolve("hf.co/a/b:q4_k_m")) == place and hub.log == []


def test_with_less_memory_it_brings_less(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, 400)
    assert fetch.fetch(resolve("hf:a/b")).name == "m-Q3_K_M.gguf"


def test_split_files_come_together(hub: Hub) -> None:
    seen: list[tuple[int, int | None]] = []
    entry = resolve("hf:a/b:Q8_0")
    assert fetch.settled(entry).download_bytes == sum(len(FILES[name]) for name in PARTS)
    place = fetch.fetch(entry, lambda what, done, total: seen.append((done, total)))
    assert [(place.parent / Path(name).name).read_bytes() for name in PARTS] == [FILES[name] for name in PARTS]
    assert seen[-1] == (1240, 1240)
    place.with_name(Path(PARTS[1]).name).unlink()
    assert fetch.locate(entry) is None


def test_before_a_download_one_is_told_what_it_is(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    obtain(resolve("hf:a/b"), report=told.append)
    assert told == ["hf:a/b: m-Q4_K_M.gguf, 0 kB"]
    obtain(resolve("hf:a/b"), report=told.append)
    assert len(told) == 1
    assert fetch.describe(fetch.settled(resolve("hf:a/b:Q8_0"))) == f"hf:a/b:Q8_0: {PARTS[0]} in 2 parts, 1 kB"


def test_what_cannot_fit_is_refused_before_it_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, 100)
    with pytest.raises(DoesNotFitError, match=r"hf:a/b has 0 kB of weights, .*choose a smaller quant or model"):
        obtain(resolve("hf:a/b"))
    assert hub.sent(".gguf") == []
    assert obtain(resolve("hf:a/b:Q4_K_M"), force=True).name == "m-Q4_K_M.gguf"


def test_settled_asks_no_hub_for_what_is_known_or_here(hub: Hub) -> None:
    known = resolve("qwen3-8b")
    assert fetch.settled(known) is known
    fetch.fetch(resolve("hf:a/b"))
    hub.log.clear()
    here = resolve("hf:a/b")
    assert fetch.settled(here) is here
    elsewhere = resolve("hf:c/d")
    assert fetch.settled(elsewhere, offline=True) is elsewhere
    assert hub.log == []


def test_a_folder_is_taken_where_there_is_no_gguf_or_it_is_asked_for(hub: Hub) -> None:
    folder = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": b"w" * 9}
    hub.files |= folder
    assert fetch.fetch(resolve("hf:a/b")).suffix == ".gguf"
    place = fetch.fetch(resolve("hf:a/b:safetensors"))
    assert {file.name for file in place.iterdir()} == {*folder, "m-Q4_K_M.gguf"}
    assert fetch.fetch(fetch.unquantized(resolve("hf:a/b"))) == place
    hub.files = folder | {"m-IQ2_M.gguf": b"x"}
    hub.repo = "c/d"
    assert fetch.fetch(resolve("hf:c/d")).is_dir()


def test_removing_a_quant_leaves_the_others(hub: Hub) -> None:
    q4, q8 = resolve("hf:a/b:Q4_K_M"), resolve("hf:a/b:Q8_0")
    place = fetch.fetch(q4)
    fetch.fetch(q8)
    assert fetch.disk_usage(q8) == fetch.remove(q8) == 1240
    assert fetch.locate(q8) is None and fetch.locate(q4) == place and fetch.disk_usage(q8) == 0
    begun = place.parents[2] / "blobs/x.incomplete"
    begun.write_bytes(b"123")
    assert fetch.remove(q8) == 3 and fetch.locate(q4) == place and not begun.exists()
    assert fetch.remove(q4) == 500 and not place.parents[2].exists()


def test_removing_deletes_nothing_that_a_link_leads_to_elsewhere(hub: Hub, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"mine")
    place = fetch.fetch(resolve("hf:a/b:Q4_K_M"))
    (place.parent / "m-Q3_K_M.gguf").symlink_to(own)
    fetch.remove(resolve("hf:a/b:Q3_K_M"))
    assert own.read_bytes() == b"mine" and fetch.locate(resolve("hf:a/b:Q3_K_M")) is None and place.is_file()
    (place.parent / "m-Q3_K_M.gguf").symlink_to(own)
    fetch.remove(resolve("hf:a/b"))
    assert own.read_bytes() == b"mine" and not place.exists()


def test_removing_the_last_quant_leaves_what_other_programs_have_beside_it(hub: Hub) -> None:
    place = fetch.fetch(resolve("hf:a/b:Q4_K_M"))
    other = place.with_name("pytorch_model.bin")
    other.write_bytes(b"w")
    assert fetch.remove(resolve("hf:a/b:Q4_K_M")) == 500 and other.read_bytes() == b"w" and not place.exists()


def test_a_quant_that_two_models_here_have_is_not_taken_at_random(hub: Hub) -> None:
    hub.files = {"x-Q4_K_M.gguf": b"x", "y-Q4_K_M.gguf": b"y", "x-Q8_0.gguf": b"z"}
    for file in hub.files:
        fetch.fetch(resolve(f"hf:a/b/{file}"))
    for text in ("hf:a/b", "hf:a/b:Q4_K_M"):
        assert fetch.locate(resolve(text)) is None
        with pytest.raises(CatalogError, match=r"several models of Q4_K_M; .*name one, hf:a/b/FILE: x-Q4_K_M.gguf, y-"):
            fetch.fetch(resolve(text))
    assert fetch.fetch(resolve("hf:a/b:Q8_0"), offline=True).read_bytes() == b"z"


def test_a_file_of_an_older_commit_is_found_and_used(hub: Hub) -> None:
    place = fetch.fetch(resolve("hf:a/b:Q4_K_M"))
    newer = place.parents[1] / ("f" * 40)
    newer.mkdir()
    (newer / "m-Q3_K_M.gguf").write_bytes(b"3")
    (place.parents[2] / "refs/main").write_text(newer.name)
    assert fetch.locate(resolve("hf:a/b:Q4_K_M")) == place
    assert fetch.locate(resolve("hf:a/b:Q4_K_M@main")) is None


def test_where_there_are_no_links_the_file_itself_is_put_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refused)
    place = fetch.fetch(resolve("hf:a/b"))
    assert place.read_bytes() == FILES["m-Q4_K_M.gguf"] and not place.is_symlink()
    assert fetch.fetch(resolve("hf:a/b"), offline=True) == place


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf:a/b:Q5_K_M", "a/b has no Q5_K_M; nothing was fetched; it has IQ2_XXS, Q3_K_M, Q4_K_M, Q8_0$"),
        ("hf:a/b/none.gguf", "a/b has no none.gguf; the model was not fetched; it has m-Q4_K_M.gguf, Q8_0/"),
        ("hf:a/b:safetensors", r"a/b has no model\*.safetensors; the model was not fetched"),
        ("hf:a/none", "the hub shows no repository a/none"),
        ("hf:a/b@v9", "a/b has no revision v9"),
    ],
)
def test_what_there_is_not_is_one_line(hub: Hub, reference: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message) as refused:
        fetch.fetch(resolve(reference))
    assert "\n" not in str(refused.value) and hub.sent(".gguf") == []


LISTED = {"size": 3, "blobId": "0" * 40}


def sibling(name: str, **other: Any) -> dict[str, Any]:
    return {"rfilename": name, **LISTED, **other}


@pytest.mark.parametrize(
    "name",
    ["../x-Q4_K_M.gguf", "/etc/x-Q4_K_M.gguf", "a/../../x.gguf", "a\\..\\x.gguf", ".x.gguf", "x\0.gguf", "x\x1b.gguf"],
)
def test_names_that_lead_elsewhere_are_as_if_they_were_not_there(hub: Hub, name: str) -> None:
    files = [sibling(name), sibling("m-Q8_0.gguf"), sibling("x" * 501 + ".gguf")]
    hub.status, hub.body = 200, json.dumps({"sha": COMMIT, "siblings": files}).encode()
    assert fetch.settled(resolve("hf:a/b")).download_bytes == 3


@pytest.mark.parametrize(
    "told",
    [
        {"sha": "../../x", "siblings": [sibling("m.gguf")]},
        {"sha": COMMIT, "siblings": [sibling("m.gguf", size=-1)]},
        {"sha": COMMIT, "siblings": [sibling("m.gguf", size=10**30)]},
        {"sha": COMMIT, "siblings": [sibling("m.gguf", size="3")]},
        {"sha": COMMIT, "siblings": [sibling("m.gguf", blobId="../../../x")]},
        {"sha": COMMIT, "siblings": [sibling("m.gguf", lfs={"sha256": "../x", "size": 3})]},
        {"sha": COMMIT, "siblings": [{"rfilename": ["m.gguf"]}]},
    ],
    ids=str,
)
def test_commits_and_checksums_that_are_none_become_no_part_of_a_path(hub: Hub, told: Any, tmp_path: Path) -> None:
    hub.status, hub.body = 200, json.dumps(told).encode()
    with pytest.raises(
        CatalogError, match=r"does not answer as a hub: it .*; the model was not fetched; check HF_ENDPOINT"
    ):
        fetch.fetch(resolve("hf:a/b"))
    assert not (tmp_path / "hf").exists()


def test_a_listing_of_a_million_names_is_not_read_to_its_end(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_answers, "MAX_ANSWER", 1 << 16)
    hub.status = 200
    hub.body = json.dumps({"sha": COMMIT, "siblings": [sibling(f"{n}.gguf") for n in range(10_000)]}).encode()
    with pytest.raises(CatalogError, match="its answer is longer than"):
        fetch.fetch(resolve("hf:a/b"))


def test_thousands_of_parts_are_counted_in_a_moment() -> None:
    from llamachat.models.fetch.choice import models

    sizes = {f"x{stem}-{part:05}-of-05000.gguf": 1 for stem in range(2500) for part in (1, 2)}
    assert models(sizes) == []


def test_a_gated_repository_tells_how_to_get_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    assert fetch.settled(resolve("hf:a/b")).gated
    with pytest.raises(CatalogError, match="a/b is gated; the model was not fetched; accept its licence at"):
        fetch.fetch(resolve("hf:a/b"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert fetch.fetch(resolve("hf:a/b")).is_file()


def test_a_token_goes_to_no_server_that_the_hub_sends_one_to(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with serving(Hub("a/b", dict(FILES))) as other:
        hub.moved = other.url
        assert fetch.fetch(resolve("hf:a/b")).read_bytes() == FILES["m-Q4_K_M.gguf"]
    assert (hub.keys - {None}, other.keys) == ({f"Bearer {hub.token}"}, {None})


def header(architecture: str, before: int = 0) -> bytes:
    """Of a GGUF file: some texts, then its architecture."""
    import struct

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = [(f"general.x{number}", "y") for number in range(before)] + [("general.architecture", architecture)]
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(keys)) + b"".join(
        text(key) + struct.pack("<I", 8) + text(value) for key, value in keys
    )


def test_of_an_architecture_that_is_not_read_no_more_than_the_beginning_is_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("llamachat.models.fetch.blobs.HEAD", 400)
    hub.files["m-Q4_K_M.gguf"] = header("gemma3n\x1b[2J", before=3) + b"w" * 1000
    with pytest.raises(CatalogError, match="a/b cannot run here: gemma3n is no architecture that runs here; no more"):
        fetch.fetch(resolve("hf:a/b"))
    assert hub.sent(".gguf") == ["bytes=0-399"] and not list(tmp_path.rglob("*.incomplete"))
    for whole in (header("llama", before=3) + b"w" * 1000, b"GGUF", header("nothing")[:30], header("late", before=60)):
        hub.files["m-Q4_K_M.gguf"] = whole
        place = fetch.fetch(resolve("hf:a/b"))
        assert place.read_bytes() == whole
        fetch.remove(resolve("hf:a/b"))


def test_an_endpoint_that_is_no_address_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "nonsense")
    with pytest.raises(
        CatalogError, match="HF_ENDPOINT = 'nonsense' is no address of a hub; nothing was found; correct it"
    ):
        search("x", 5)


def test_a_refusal_of_any_length_is_not_read(hub: Hub) -> None:
    hub.status, hub.body = 500, b"x" * 1000
    with pytest.raises(CatalogError, match=r"the hub answers 500 for a/b; .*try again later"):
        fetch.fetch(resolve("hf:a/b"))


def test_a_server_that_is_busy_is_asked_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamachat.models.fetch import blobs

    def better(_: float) -> None:
        hub.status = 0

    entry = resolve("hf:a/b:Q4_K_M")
    monkeypatch.setattr(blobs.time, "sleep", better)

    def begin(_: ModelEntry) -> None:
        hub.status = 503

    assert fetch.fetch(entry, before=begin).is_file()


ROW = {
    "id": "a/b",
    "downloads": 12,
    "gated": "auto",
    "lastModified": "2025-08-14T10:00:00.000Z",
    "tags": ["x", "license:mit"],
}
ROW |= {"gguf": {"total": 1_235_814_400, "architecture": "llama", "chat_template": "{{"}}


def test_a_search_asks_for_gguf_by_downloads_and_each_name_is_a_reference(hub: Hub) -> None:
    hub.found = [ROW, {**ROW, "id": "c/d", "gguf": {"architecture": "gemma3n"}, "gated": False}]
    first, second = search("llama 3", 5)
    assert (hub.asked["search"], hub.asked["filter"], hub.asked["sort"]) == (["llama 3"], ["gguf"], ["downloads"])
    assert hub.asked["expand"] == [*FIELDS]
    assert asdict(first) == {
        "name": "a/b", "parameters": 1_235_814_400, "downloads": 12, "updated": "2025-08-14", "licence": "mit",
        "gated": True, "architecture": "llama", "runs": True,
    }  # fmt: skip
    assert (second.name, second.runs, second.gated, second.parameters) == ("c/d", False, False, None)
    assert resolve(f"hf:{first.name}").name == "hf:a/b"
    assert len(search("x", 1)) == 1


HOSTILE: list[Any] = [
    {"id": "../../etc"}, {"id": 5}, {}, 7, None, [], {"id": "a/b\x1b]0;x\x07"}, {"id": "a" * 300 + "/b"}, {"id": "a/b/c"},
]  # fmt: skip


def test_rows_of_any_shape_are_left_out_or_without_what_they_lie_about(hub: Hub) -> None:
    hub.found = [*HOSTILE, {"id": "a/b", "downloads": -1, "gguf": 5, "tags": 7, "lastModified": 3, "gated": []}]
    (found,) = search("x", 100)
    assert asdict(found) == {"name": "a/b", "gated": False} | dict.fromkeys(
        ("parameters", "downloads", "updated", "licence", "architecture", "runs")
    )


@pytest.mark.parametrize("body", [b"{}", b"[", b"5", b"\xff"])
def test_a_search_that_is_answered_with_nonsense_is_one_line(hub: Hub, body: bytes) -> None:
    hub.status, hub.body = 200, body
    with pytest.raises(CatalogError, match=r"does not answer as a hub: .*; nothing was found; check HF_ENDPOINT"):
        search("x", 5)


@pytest.mark.parametrize("text", ["", "  ", "x" * 201])
def test_a_search_for_nothing_is_refused(hub: Hub, text: str) -> None:
    with pytest.raises(UsageError, match="the hub was not asked"):
        search(text, 5)
    assert hub.log == []
