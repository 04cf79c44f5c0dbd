"""Models of other programs: found where they lie, read in place, never written, and never a way to harm."""

import contextlib
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_folders import hub_cache, llama_cpp, ollama, write_header

from llamachat.errors import CatalogError, ConfigError, LlamachatError
from llamachat.models import fetch, overview, stores
from llamachat.models.catalog import load_catalog, resolve
from llamachat.models.sources import StorePath
from llamachat.models.stores import stored
from llamachat.models.stores.ollama import LIST

VARIABLES = (
    "OLLAMA_MODELS", "LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME",
)  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_header(tmp_path / "own/weights.gguf")


def names() -> list[str]:
    return [reference for _, reference in stores.references()]


def snapshot(top: Path) -> list[tuple[str, int, int]]:
    """Each file and folder with its size and time."""
    return [(str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(top.rglob("*"))]


# ---- each store's layout ----


@pytest.mark.parametrize("manifests", ["manifests", "manifests-v2"])
@pytest.mark.parametrize(
    ("place", "name", "others"),
    [
        ("registry.ollama.ai/library/llama3.2/1b", "llama3.2:1b", ["LLAMA3.2:1B", "library/llama3.2:1b"]),
        (
            "registry.ollama.ai/library/mistral/latest",
            "mistral",
            ["mistral:latest", "registry.ollama.ai/library/mistral"],
        ),
        ("registry.ollama.ai/ada/tiny/q4", "ada/tiny:q4", ["registry.ollama.ai/ada/tiny:q4"]),
        ("hf.co/bartowski/Tiny-GGUF/Q4_K_M", "hf.co/bartowski/Tiny-GGUF:Q4_K_M", ["hf.co/bartowski/tiny-gguf:q4_k_m"]),
    ],
)
def test_ollamas_names_are_those_that_its_person_types(
    home: Path, weights: Path, manifests: str, place: str, name: str, others: list[str]
) -> None:
    ollama(home / ".ollama/models", place, weights, manifests)
    assert names() == [f"ollama:{name}"]
    for each in (name, *others):
        entry = resolve(f"ollama:{each}")
        assert entry.name == f"ollama:{name}"
        assert isinstance(entry.source, StorePath) and entry.source.path.parent == home / ".ollama/models/blobs"
        assert fetch.fetch(entry).read_bytes() == weights.read_bytes()


def test_ollamas_folder_is_where_its_variable_says(home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama(home / "elsewhere", "registry.ollama.ai/library/tiny/latest", weights)
    assert names() == []
    monkeypatch.setenv("OLLAMA_MODELS", f'"{home}/elsewhere" ')
    assert names() == ["ollama:tiny"]


def test_ollamas_layers_say_how_its_model_answers(home: Path, weights: Path) -> None:
    parameters = {
        "temperature": 0.3,
        "top_k": 20,
        "repeat_penalty": 1.1,
        "stop": ["<|eot_id|>", "[INST]"],
        "num_ctx": 2048,
    }
    ollama(
        home / ".ollama/models",
        "registry.ollama.ai/library/tiny/latest",
        weights,
        template="{{ .Prompt }}",
        system="Be kind.",
        params=parameters | {"mirostat": 2},
        projector="pictures",
    )
    entry = resolve("ollama:tiny")
    assert entry.system == "Be kind."
    assert entry.sampling == {"temperature": 0.3, "top_k": 20, "repetition_penalty": 1.1}
    assert list(entry.notes) == [
        "the part of tiny that sees pictures is not used",
        "of ollama's parameters for tiny these are not used: mirostat",
    ]


def test_stops_that_are_text_are_told_as_lost_and_bad_values_refused(home: Path, weights: Path) -> None:
    models = home / ".ollama/models"
    ollama(models, "registry.ollama.ai/library/one/latest", weights, params={"stop": ["User:"]})
    ollama(models, "registry.ollama.ai/library/two/latest", weights, params={"temperature": "hot"})
    assert resolve("ollama:one").notes[0].endswith("these are not used: stop")
    with pytest.raises(ConfigError, match=r"blobs/sha256-.*temperature is 'hot'"):
        resolve("ollama:two")


def test_of_ollamas_lists_of_manifests_the_one_for_gguf_is_taken(home: Path, weights: Path) -> None:
    models = home / ".ollama/models"
    inner = ollama(models, "registry.ollama.ai/library/inner/latest", weights)
    blob = models / "blobs" / ("sha256-" + "a" * 64)
    blob.write_bytes(inner.read_bytes())
    (inner.parent.parent / "both").mkdir()
    (inner.parent.parent / "both/latest").write_text(
        '{"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": [{"runner": "mlx", "layers": []}, '
        f'{{"runner": "ollama", "digest": "sha256:{"a" * 64}"}}]}}'
    )
    assert fetch.fetch(resolve("ollama:both")).read_bytes() == weights.read_bytes()


def test_an_adapter_of_ollamas_is_said_and_refused(home: Path, weights: Path) -> None:
    ollama(home / ".ollama/models", "registry.ollama.ai/library/tuned/latest", weights, adapter="lora")
    with pytest.raises(CatalogError, match="ollama:tuned cannot be run: it needs an adapter"):
        resolve("ollama:tuned")
    (known,) = overview.of_stores(overview.Room())
    assert known.seen.lacks.startswith("it needs an adapter") and not known.usable


def test_lm_studios_models_have_publisher_repository_and_file(home: Path, weights: Path) -> None:
    models = home / ".lmstudio/models"
    for name in ("ada/Tiny-GGUF/Tiny-Q4_K_M.gguf", "ada/Tiny-GGUF/Tiny-Q8_0.gguf", "bob/One/one.gguf"):
        write_header(models / name)
    (models / "mlx-community/Tiny-4bit").mkdir(parents=True)
    (models / "mlx-community/Tiny-4bit/config.json").write_text('{"model_type": "llama", "quantization": {"bits": 4}}')
    (models / "mlx-community/Tiny-4bit/model.safetensors").write_bytes(b"x" * 10)
    assert names() == [
        "lmstudio:ada/Tiny-GGUF/Tiny-Q4_K_M",
        "lmstudio:ada/Tiny-GGUF/Tiny-Q8_0",
        "lmstudio:bob/One/one",
        "lmstudio:mlx-community/Tiny-4bit",
    ]
    assert resolve("lmstudio:ada/tiny-gguf/tiny-q8_0.gguf").name == "lmstudio:ada/Tiny-GGUF/Tiny-Q8_0"
    assert resolve("lmstudio:bob/One").name == "lmstudio:bob/One/one"
    with pytest.raises(CatalogError, match=r"more than one model of LM Studio; .*Tiny-Q4_K_M or lmstudio:ada/Tiny"):
        resolve("lmstudio:ada/Tiny-GGUF")
    lacks = {known.entry.name: known.seen.lacks for known in overview.of_stores(overview.Room())}
    assert lacks["lmstudio:mlx-community/Tiny-4bit"] == "its weights are MLX's" and not lacks["lmstudio:bob/One/one"]


def test_lm_studios_folder_is_where_its_pointer_and_settings_say(home: Path) -> None:
    (home / ".lmstudio-home-pointer").write_text(f"{home}/studio\n")
    write_header(home / "studio/models/ada/Tiny/tiny.gguf")
    write_header(home / "big/ada/Large/large.gguf")
    write_header(home / ".cache/lm-studio/models/ada/Old/old.gguf")
    assert names() == ["lmstudio:ada/Old/old", "lmstudio:ada/Tiny/tiny"]
    (home / "studio/settings.json").write_text(f'{{"downloadsFolder": "{home}/big"}}')
    assert "lmstudio:ada/Large/large" in names()


def test_llama_cpps_models_are_named_as_its_manifests_say(
    home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = home / ".cache/llama.cpp"
    file = llama_cpp(cache, "ada/Tiny-GGUF", "Q4_K_M", "tiny/tiny-q4.gguf", weights)
    write_header(cache / "alone.gguf")
    assert names() == ["llama.cpp:ada/Tiny-GGUF:Q4_K_M", "llama.cpp:alone"]
    assert fetch.locate(resolve("llama.cpp:ada/tiny-gguf:q4_k_m")) == file
    assert fetch.locate(resolve("llama.cpp:ada/Tiny-GGUF")) == file
    monkeypatch.setenv("LLAMA_CACHE", str(home / "new"))
    hub_cache(home / "new", "ada/New-GGUF", {"new.gguf": weights})
    assert names() == ["llama.cpp:ada/New-GGUF/new.gguf"]
    assert resolve("llama.cpp:ada/New-GGUF/new").name == "llama.cpp:ada/New-GGUF/new.gguf"


def test_gpt4alls_models_are_files_of_its_folders(home: Path) -> None:
    write_header(home / ".local/share/nomic.ai/GPT4All/Tiny.Q4_0.gguf")
    write_header(home / ".local/share/nomic.ai/GPT4All/incomplete-Half.gguf")
    write_header(home / ".cache/gpt4all/old.gguf")
    write_header(home / "chosen/Own.gguf")
    (home / ".config/nomic.ai").mkdir(parents=True)
    (home / ".config/nomic.ai/GPT4All.ini").write_text(f"[General]\nmodelPath={home}/chosen/\nchatTheme=Dark\n")
    assert names() == ["gpt4all:Own", "gpt4all:Tiny.Q4_0", "gpt4all:old"]
    assert resolve("gpt4all:tiny.q4_0.gguf").name == "gpt4all:Tiny.Q4_0"


def test_what_others_fetched_from_the_hub_is_found_by_its_reference(home: Path, weights: Path) -> None:
    config, safetensors = b'{"model_type": "bert"}', b"x" * 10
    hub_cache(home / "hf/hub", "ada/Tiny-GGUF", {"tiny.Q4_0.gguf": weights, "README.md": b"x"})
    hub_cache(home / "hf/hub", "ada/Other", {"config.json": config, "model.safetensors": safetensors})
    hub_cache(home / "hf/hub", "ada/Dev-GGUF", {"dev.gguf": weights}, revision="dev")
    assert names() == ["hf:ada/Dev-GGUF/dev.gguf@dev", "hf:ada/Other", "hf:ada/Tiny-GGUF/tiny.Q4_0.gguf"]
    dev, other, tiny = overview.of_stores(overview.Room())
    assert dev.path == fetch.locate(dev.entry) and tiny.path == fetch.locate(tiny.entry)
    assert other.seen.lacks == "bert is no architecture that runs here" and other.nbytes == 10
    assert tiny.nbytes == weights.stat().st_size and tiny.plan and tiny.usable


def test_a_repository_with_both_kinds_is_two_models(home: Path, weights: Path) -> None:
    files = {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": b"x",
        "tokenizer.json": b"{}",
        "both.gguf": weights,
    }
    snapshot = hub_cache(home / "hf/hub", "ada/Both", files)
    found = {known.entry.name: fetch.locate(known.entry) for known in overview.of_stores(overview.Room())}
    assert found == {"hf:ada/Both/both.gguf": snapshot / "both.gguf", "hf:ada/Both:SAFETENSORS": snapshot}


def test_what_the_catalog_has_is_no_second_model(home: Path, weights: Path) -> None:
    hub_cache(home / "hf/hub", "ggml-org/gemma-3-1b-it-GGUF", {"gemma-3-1b-it-Q4_K_M.gguf": weights})
    known = list(overview.of_catalog(load_catalog(), overview.Room()))
    here = [each for each in known if each.path]
    assert [each.entry.name for each in here] == ["gemma3-1b"]
    assert not list(overview.of_stores(overview.Room(), [each.path for each in known]))


def test_a_split_model_is_one_and_must_be_whole(home: Path) -> None:
    folder = home / ".lmstudio/models/ada/Big"
    for part in (1, 2):
        write_header(folder / f"big-0000{part}-of-00002.gguf")
    (reference,) = names()
    entry = resolve(reference)
    assert isinstance(entry.source, StorePath)
    assert entry.source.nbytes == sum(file.stat().st_size for file in folder.iterdir())
    (folder / "big-00002-of-00002.gguf").unlink()
    assert not list(overview.of_stores(overview.Room()))
    with pytest.raises(CatalogError, match=r"big-00002-of-00002.gguf is not there; the model is not whole"):
        resolve(reference)


# ---- what is asked of them ----


def test_an_unknown_name_comes_with_near_ones_or_where_was_looked(home: Path, weights: Path) -> None:
    with pytest.raises(CatalogError, match=f"ollama has no model 'tiny'; .*{home}/.ollama/models"):
        resolve("ollama:tiny")
    ollama(home / ".ollama/models", "registry.ollama.ai/library/llama3.2/1b", weights)
    with pytest.raises(CatalogError, match=r"did you mean ollama:llama3.2:1b"):
        resolve("ollama:lama3.2:1b")
    assert resolve("ollama:llama3.2").name == "ollama:llama3.2:1b"  # the only tag that there is
    with pytest.raises(CatalogError, match=r"no model is called 'llama3.2:1b'; .*did you mean ollama:llama3.2:1b\?"):
        resolve("llama3.2:1b")


@pytest.mark.parametrize("store", ["ollama", "lmstudio", "llama.cpp", "gpt4all"])
@pytest.mark.parametrize("name", ["", "../x", "/etc/passwd", "a\0b", "\x1b[31m", "a" * 10_000, "é", ":", "/", "hf.co/"])
def test_no_name_is_a_way_out(store: str, name: str) -> None:
    with pytest.raises(CatalogError) as raised:
        resolve(f"{store}:{name}")
    assert "\x1b" not in str(raised.value) and len(str(raised.value)) < 1000


def test_a_model_of_another_program_is_removed_by_nobody_else(home: Path, weights: Path) -> None:
    ollama(home / ".ollama/models", "registry.ollama.ai/library/llama3.2/1b", weights)
    with pytest.raises(CatalogError, match=r"is ollama's; it was not deleted; remove it with `ollama rm llama3.2:1b`"):
        fetch.remove(resolve("ollama:llama3.2:1b"))


def test_nothing_is_written_where_others_keep_their_models(home: Path, weights: Path) -> None:
    ollama(home / ".ollama/models", "registry.ollama.ai/library/tiny/latest", weights)
    llama_cpp(home / ".cache/llama.cpp", "ada/Tiny", "Q4", "tiny.gguf", weights)
    before = snapshot(home)
    for known in overview.of_stores(overview.Room()):
        fetch.fetch(resolve(known.entry.name))
    assert snapshot(home) == before


# ---- what could harm ----


def test_broken_stores_are_quiet_in_lists_and_one_line_when_asked_for(home: Path, weights: Path) -> None:
    models = home / ".ollama/models"
    good = ollama(models, "registry.ollama.ai/library/good/latest", weights)
    library = good.parent.parent
    bad: dict[str, bytes] = {
        "empty": b"",
        "list": b"[]",
        "text": b"\xff\xfe",
        "deep": b"[" * 100_000,
        "twice": b'{"layers": 1, "layers": 2}',
        "none": b'{"layers": {}}',
        "odd": b'{"layers": [1, null, {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x"}]}',
        "gone": b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:'
        + b"0" * 64
        + b'"}]}',
        "large": b" " * (1 << 21),
    }
    for name, data in bad.items():
        (library / name).mkdir()
        (library / name / "latest").write_bytes(data)
    assert [known.entry.name for known in overview.of_stores(overview.Room())] == ["ollama:good"]
    for name in bad:
        with pytest.raises(CatalogError) as raised:
            resolve(f"ollama:{name}")
        assert "\n" not in str(raised.value)


KINDS = [f"application/vnd.ollama.image.{kind}" for kind in ("model", "params", "system")]
KEYS = ["mediaType", "layers", "digest", "size", "manifests", "runner"]
WORDS = st.sampled_from([*KINDS, *KEYS, "ollama", LIST, "sha256:" + "0" * 64])
JSON = st.recursive(
    st.none() | st.integers() | WORDS, lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner), max_leaves=6
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(WORDS, JSON), JSON)
def test_any_manifest_is_a_model_or_one_line(home: Path, manifest: dict[str, object], blob: object) -> None:
    models = home / ".ollama/models"
    for place, table in (
        (models / "manifests/a/b/c/latest", manifest),
        (models / "blobs" / f"sha256-{'0' * 64}", blob),
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(table))
    with contextlib.suppress(LlamachatError):
        assert resolve("ollama:a/b/c").name == "ollama:a/b/c"
    assert len(list(overview.of_stores(overview.Room(available=1)))) <= 1


def test_a_blob_that_is_not_whole_is_refused(home: Path, weights: Path) -> None:
    ollama(home / ".ollama/models", "registry.ollama.ai/library/tiny/latest", weights)
    entry = resolve("ollama:tiny")
    assert isinstance(entry.source, StorePath)
    entry.source.path.write_bytes(b"GGUF")
    with pytest.raises(CatalogError, match=r"is not there or not whole; .*; fetch it again with ollama"):
        resolve("ollama:tiny")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_loops_pipes_and_names_for_the_terminal_are_left_out(home: Path) -> None:
    models = home / ".lmstudio/models"
    write_header(models / "ada/Tiny/tiny.gguf")
    (models / "ada/loop").symlink_to(models)
    (models / "self").symlink_to(models / "self")
    (models / "ada/Tiny/gone.gguf").symlink_to(home / "nowhere")
    os.mkfifo(models / "ada/Tiny/pipe.gguf")
    write_header(models / "ada/Tiny/\x1b]0;owned\x07.gguf")
    write_header(models / "ada/\u202eevil/tiny.gguf")
    os.close(os.open(os.fsencode(models) + b"/ada/Tiny/\xff.gguf", os.O_CREAT | os.O_WRONLY))
    assert [name for name in names() if "loop" not in name] == ["lmstudio:ada/Tiny/tiny"]


def test_of_many_thousand_parts_the_first_that_is_not_there_is_enough(home: Path) -> None:
    begun = write_header(home / ".lmstudio/models/ada/Tiny/x-00001-of-99999.gguf")
    begin = time.process_time()
    for _ in range(100):
        with pytest.raises(CatalogError, match=r"x-00002-of-99999.gguf is not there; the model is not whole"):
            stored.size(begun)
    assert time.process_time() - begin < 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_part_that_is_a_pipe_is_none(home: Path) -> None:
    begun = write_header(home / ".lmstudio/models/ada/Tiny/x-00001-of-00002.gguf")
    os.mkfifo(begun.with_name("x-00002-of-00002.gguf"))
    with pytest.raises(CatalogError, match=r"x-00002-of-00002.gguf is not there; the model is not whole"):
        resolve("lmstudio:ada/Tiny/x-00001-of-00002")


def test_repositories_of_other_kinds_take_no_models_place(
    home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "SHOWN", 2)
    hub_cache(home / "hf/hub", "ada/Tiny", {"tiny.gguf": weights})
    for number in range(3):
        (home / f"hf/hub/datasets--ada--{number}").mkdir()
    assert names() == ["hf:ada/Tiny/tiny.gguf"]


def test_of_very_many_files_some_are_looked_at_and_fewer_listed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MOST", 40)
    monkeypatch.setattr(stores, "SHOWN", 10)
    for number in range(30):
        write_header(home / f".lmstudio/models/ada/Tiny{number}/tiny.gguf")
    assert len(names()) == 40 - 30 - 1  # ada, its folders, files
    monkeypatch.setattr(stored, "MOST", 1000)
    assert len(names()) == 30 and len(list(overview.of_stores(overview.Room()))) == 10
    monkeypatch.setattr(stored, "SHOWN", 5)
    for number in range(8):
        hub_cache(home / "hf/hub", f"ada/Tiny{number}", {"tiny.gguf": home / ".lmstudio/models/ada/Tiny0/tiny.gguf"})
    assert len([name for name in names() if name.startswith("hf:")]) == 5


def test_headers_say_what_runs_here_and_what_it_takes(home: Path) -> None:
    folder = home / ".cache/gpt4all"
    write_header(folder / "a.gguf")
    write_header(folder / "b.gguf", arch="mamba")
    write_header(folder / "c.gguf", arch="clip", **{"general.type": "mmproj"})
    write_header(folder / "d.gguf", arch="qwen3", pooling_type=3)
    (folder / "e.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 30)
    (folder / "f.gguf").write_bytes(b"")
    write_header(folder / "g.gguf", arch="gemma3", **{"vision.block_count": 2})
    known = {each.entry.name.removeprefix("gpt4all:"): each for each in overview.of_stores(overview.Room())}
    assert list(known) == ["a", "b", "d", "e", "f", "g"]
    assert {name for name, each in known.items() if each.usable} == {"a"}
    assert known["a"].plan and known["a"].plan.kv == 2 * 2 * 2 * 16 * 2 * 4096 and known["a"].entry.context == 4096
    assert known["b"].seen.lacks == "mamba is no architecture that runs here"
    assert known["g"].seen.lacks == "its file holds a part that sees pictures"
    assert known["e"].plan is None and known["f"].plan is None


def test_dozens_are_listed_at_once(home: Path, weights: Path) -> None:
    for number in range(40):
        ollama(home / ".ollama/models", f"registry.ollama.ai/library/tiny{number}/latest", weights)
    list(overview.of_stores(overview.Room()))
    began = time.process_time()
    assert len(list(overview.of_stores(overview.Room()))) == 40
    assert time.process_time() - began < 0.2


def test_what_is_better_is_the_largest_that_is_quick_and_made_to_chat(home: Path) -> None:
    catalog = load_catalog()
    default = catalog.entries[catalog.default]

    def offered(available: int) -> str | None:
        room = overview.Room(available=available)
        known = list(overview.of_catalog(catalog, room))
        found = overview.better([*known, *overview.of_stores(room)], default)
        return found.entry.name if found else None

    assert offered(300_000_000) is None
    small, large = offered(3_000_000_000), offered(200_000_000_000)
    assert small and large and small != large
    picked = catalog.entries[large]
    assert not picked.gated and (picked.download_bytes or 0) <= overview.SOON
    base = write_header(home / ".cache/gpt4all/base.gguf")
    os.truncate(base, 200_000_000)
    assert offered(200_000_000_000) == large, "what has no template is not made to chat"
