"""Names, paths and models.toml, ours and the user's."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat import paths
from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import Experts, ModelSpec, QuantConfig
from llamachat.errors import CatalogError, ConfigError, UsageError
from llamachat.formats.gguf import open_gguf
from llamachat.models import catalog
from llamachat.models.catalog import ModelEntry, load_catalog, lookup, resolve
from llamachat.models.fetch import fetch
from llamachat.models.fetch import hub as fetch_hub
from llamachat.models.fetch import wheel as fetch_wheel
from llamachat.models.sources import HubSource, LocalPath, ServerSource, WheelSource

# From each model's published config.json: intermediate size, attention heads, tied embeddings, q/k/v bias.
ARCHITECTURES = {
    "smollm2-135m": (1536, 9, True, False),
    "smollm2-360m": (2560, 15, True, False),
    "smollm2-1.7b": (8192, 32, True, False),
    "tinyllama-1.1b": (5632, 32, False, False),
    "llama-3.2-1b": (8192, 32, True, False),
    "llama-3.2-3b": (8192, 24, True, False),
    "llama-3.1-8b": (14336, 32, False, False),
    "llama-3.3-70b": (28672, 64, False, False),
    "mistral-7b": (14336, 32, False, False),
    "qwen2.5-0.5b": (4864, 14, True, True),
    "qwen2.5-1.5b": (8960, 12, True, True),
    "qwen2.5-3b": (11008, 16, True, True),
    "qwen2.5-7b": (18944, 28, False, True),
    "qwen3-0.6b": (3072, 16, True, False),
    "qwen3-1.7b": (6144, 16, True, False),
    "qwen3-4b": (9728, 32, True, False),
    "qwen3-8b": (12288, 32, False, False),
    "qwen3-14b": (17408, 40, False, False),
    "qwen3-30b-a3b": (6144, 32, False, False),
    "gemma3-1b": (6912, 4, True, False),
    "gemma3-4b": (10240, 8, True, False),
    "smollm3-3b": (11008, 16, True, False),
    "granite-3.3-2b": (8192, 32, True, False),
    "phi4-mini": (8192, 24, True, False),
    "ministral3-3b": (9216, 32, True, False),
    "olmo2-1b": (8192, 16, False, False),
    "mistral-nemo": (14336, 32, False, False),
    "mistral-small-3.2": (32768, 32, False, False),
    "gpt-oss-20b": (2880, 64, False, True),
}
SANDWICH: dict[str, Any] = {"norms": "both", "qk_norm": "head"}
BEYOND: dict[str, dict[str, Any]] = {  # what of their layers has weights that a Llama's have not
    **{f"qwen3-{size}b": {"qk_norm": "head"} for size in ("0.6", "1.7", "4", "8", "14")},
    "qwen3-30b-a3b": {"qk_norm": "head", "experts": Experts(128, 8, 768)},
    "gemma3-1b": SANDWICH,
    "gemma3-4b": SANDWICH,
    "olmo2-1b": {"norms": "after", "qk_norm": "projection"},
    "gpt-oss-20b": {
        "experts": Experts(32, 4, 2880, bias=True), "attention_sinks": True, "attention_out_bias": True
    },
}  # fmt: skip
HUB = 'source = { hub = "owner/repo" }\n'


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "config/llamachat"


@pytest.fixture
def write(config: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        config.mkdir(parents=True, exist_ok=True)
        (config / "models.toml").write_text(text, encoding="utf-8")
        return config / "models.toml"

    return write


def test_without_a_name_the_default_is_meant() -> None:
    entry = resolve(None)
    assert entry.name == load_catalog().default == "smollm2-135m"
    assert (entry.dialog, entry.format, entry.licence) == ("chatml", "gguf", "Apache-2.0")
    assert entry.system == "You are a helpful AI assistant."


@pytest.mark.parametrize("name", load_catalog().entries)
def test_parameter_counts_follow_from_the_shapes(name: str) -> None:
    entry = load_catalog().entries[name]
    assert entry.shape is not None and entry.download_bytes is not None and entry.context is not None
    inner, heads, tied, bias = ARCHITECTURES[name]
    s = entry.shape
    sizes = (s.vocab, s.hidden, inner, s.layers, heads, s.kv_heads, s.head_dim, entry.context)
    config = ModelSpec(*sizes, tie_word_embeddings=tied, qkv_bias=bias, **BEYOND.get(name, {}))
    assert s.params == sum(math.prod(shape) for shape in config.tensor_shapes().values())
    if entry.format == "gguf" and isinstance(entry.source, HubSource):  # 8 or 4 bits and a half, some tensors more
        assert 0.53 < entry.download_bytes / s.params < 1.09


@pytest.mark.parametrize("entry", load_catalog().entries.values(), ids=lambda entry: entry.name)
def test_every_entry_of_ours_has_what_a_user_needs(entry: ModelEntry) -> None:
    assert entry.description and entry.licence and entry.dialog and entry.context
    SamplingParams(**entry.sampling)  # type: ignore[arg-type]
    assert entry.format == "gguf" and not entry.gated
    assert not isinstance(entry.source, HubSource) or entry.source.file


def test_the_shape_of_the_default_is_that_of_its_file(smollm2_gguf: Path) -> None:
    file = open_gguf(smollm2_gguf)
    keys = ("block_count", "embedding_length", "attention.head_count_kv", "rope.dimension_count", "context_length")
    entry = resolve(None)
    assert entry.shape is not None
    stated = [entry.shape.layers, entry.shape.hidden, entry.shape.kv_heads, entry.shape.head_dim, entry.context]
    assert stated == [file.metadata[f"llama.{key}"] for key in keys]
    assert entry.shape.params == sum(math.prod(info.shape) for info in file.index().values())


@pytest.mark.parametrize("name", ["smollm2-135m", "SmolLM2-135M"])
def test_names_ignore_case(name: str) -> None:
    assert resolve(name).name == "smollm2-135m"


@pytest.mark.parametrize("name", ["smollm2-135", "llama-3.2-1bb", "ＳmolLM2-135M", "smollm2‑135m", "ſmollm2-135m"])
def test_a_name_that_is_only_like_one_is_refused_with_the_near_ones(name: str) -> None:
    with pytest.raises(CatalogError, match=r"no model is called .*did you mean .*2.*`llamachat models list`"):
        resolve(name)


NOTHING = ["../x", "a/../../b", "./x", "~/x", "/no/such", "a\0b", "\0", "~nobody-here", "x" * 5000, "", "a\nb\x1b[2J"]


@pytest.mark.parametrize("name", NOTHING)
def test_what_is_no_name_and_no_file_is_one_clean_line(name: str) -> None:
    with pytest.raises(CatalogError) as caught:
        resolve(name)
    assert str(caught.value).isprintable() and "no model" in str(caught.value)


@given(st.text() | st.from_regex(r"hf:[\w./@-]*"))
def test_any_text_is_a_model_or_a_clean_error_and_stays_in_our_folders(text: str) -> None:
    try:
        source = resolve(text).source
    except CatalogError as error:
        assert "\n" not in str(error)
        return
    assert not isinstance(source, HubSource) or fetch_hub.folder(source).parent == paths.hub_cache_dir()


def test_a_path_works_where_a_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "model.gguf").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(str(tmp_path / "model.gguf")) == ModelEntry(
        str(tmp_path / "model.gguf"), LocalPath(tmp_path / "model.gguf")
    )
    assert resolve("~/model.gguf").source == LocalPath(tmp_path / "model.gguf")
    monkeypatch.chdir(tmp_path)
    assert resolve("model.gguf").source == LocalPath(Path("model.gguf"))
    assert resolve("smollm2-135m").source == LocalPath(Path("smollm2-135m"))  # what is here goes before the catalog
    assert resolve(None).name == "smollm2-135m" and not isinstance(resolve(None).source, LocalPath)


@pytest.mark.parametrize(
    "text, source",
    [
        ("hf:owner/repo", HubSource("owner/repo")),
        ("hf:owner/Re.po_1@v1.0", HubSource("owner/Re.po_1", "v1.0")),
        ("hf:owner/repo@refs/pr/4", HubSource("owner/repo", "refs/pr/4")),
        ("hf:owner/repo/sub/m-Q4_0.gguf@main", HubSource("owner/repo", "main", "sub/m-Q4_0.gguf")),
    ],
)
def test_hub_names(text: str, source: HubSource) -> None:
    entry = resolve(text)
    assert entry.source == source and entry.name == text and entry.format == ("gguf" if source.file else None)


NO_REPOSITORY = ["", "x", "/x", "x/", "../x", "x/..", "-x/y", "x/y@../z", "x/y@", "x/y@-", "x/y/../z.gguf", "x/y/z.bin"]


@pytest.mark.parametrize("text", [f"hf:{rest}" for rest in (*NO_REPOSITORY, "x/ÿ", "x/y\n", "x/y\0")])
def test_no_hub_name(text: str) -> None:
    with pytest.raises(CatalogError, match="is no repository; nothing was loaded; write hf:owner/repo"):
        resolve(text)


def test_the_users_file_adds_replaces_and_amends(write: Callable[[str], Path]) -> None:
    file = write(
        'default = "mine"\n'
        '[models.mine]\nsource = { path = "m/model.gguf" }\ncontext = 77\nsampling = { temperature = 0, top_k = 3 }\n'
        '[models."llama-3.2-1b"]\nsource = { path = "/abs/llama" }\n'
        '[models."llama-3.2-3b"]\ncontext = 4096\n'
        'quant_config = { scheme = "bnb-nf4", skip = ["lm_head"], kv_bits = 8 }\n'
    )
    stock = load_catalog(Path("/none")).entries
    mine = resolve(None)
    assert mine.source == LocalPath(file.parent / "m/model.gguf") and mine.context == 77
    assert mine.sampling == {"temperature": 0, "top_k": 3}
    assert resolve("llama-3.2-1b") == ModelEntry("llama-3.2-1b", LocalPath(Path("/abs/llama")))
    amended = resolve("llama-3.2-3b")
    assert amended.quant_config == QuantConfig("bnb-nf4", skip=("lm_head",), kv_bits=8) and amended.context == 4096
    assert (amended.source, amended.shape) == (stock["llama-3.2-3b"].source, stock["llama-3.2-3b"].shape)
    assert resolve("llama-3.1-8b") == stock["llama-3.1-8b"]


def test_a_path_in_the_users_file_may_begin_at_home(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    write('[models.mine]\nsource = { path = "~/m" }\n')
    assert resolve("mine").source == LocalPath(Path("/home/someone/m"))


SERVER = 'source = { server = "http://127.0.0.1:8080" }\n'
WHEEL = (
    '[models.x]\nsource = {{ wheel = "{}", version = "1.0", bytes = 1, sha256 = "{}", '
    'member = "{}", member_bytes = 1, member_sha256 = "{}" }}'
)
WRONG = [
    ("[models.x]\n" + HUB + "heat = 1", r"unknown key heat = 1 in \[models.x\] of .*models.toml; .*known keys"),
    ("modles = 1", "unknown key modles = 1 in .*models.toml; .*known keys: default, models"),
    ("[models.x]\n" + HUB + 'name = "y"', "unknown key name = 'y'"),
    ("[models.x]\n" + HUB + "context = 0", "context = 0 in .* is not a positive whole number"),
    ("[models.x]\n" + HUB + "context = true", "context = True in .* is not a positive whole number"),
    ("[models.x]\n" + HUB + "context = 1.5", "context = 1.5 in .* is not a positive whole number"),
    ("[models.x]\n" + HUB + 'gated = "yes"', "gated = 'yes' in .* is not true or false"),
    ("[models.x]\n" + HUB + 'base = "../x"', r"base = '\.\./x' in .* is not owner/repo"),
    ('[models.x]\nsource = { hub = "a/b", quant = "../x" }', "quant = .* is not allowed"),
    ("[models.x]\n" + HUB + "licence = 2", "licence = 2 in .* is not text"),
    ("[models.x]\n" + HUB + "think = true", "think = True in .* is not one of on, off"),
    ("[models.x]\n" + HUB + 'format = "onnx"', "format = 'onnx' in .* is not one of gguf, hf, meta, lit, packed"),
    ("[models.x]\n" + HUB + 'dialog = "llama4"', "dialog = 'llama4' in .* is not one of llama3, llama2, chatml"),
    ("[models.x]\n" + HUB + 'quant_config = { scheme = "int3" }', "scheme = 'int3' in quant_config .* not one of int8"),
    ("[models.x]\n" + HUB + "quant_config = { }", r"scheme is missing in quant_config in \[models.x\]"),
    ("[models.x]\n" + HUB + 'quant_config = { scheme = "int8", skip = [1] }', r"skip = \[1\] in quant_config"),
    ("[models.x]\n" + HUB + "quant_config = 4", "4 is not a table, in quant_config"),
    ("[models.x]\n" + HUB + "shape = { layers = 1 }", "hidden is missing in shape in"),
    ("[models.x]\n" + HUB + "sampling = { heat = 1 }", "unknown key heat = 1 in sampling in"),
    ("[models.x]\n" + HUB + "sampling = { seed = 1 }", "unknown key seed = 1 in sampling in"),
    ("[models.x]\n" + HUB + "sampling = { top_p = nan }", "top_p = nan in sampling in .* is not a number"),
    ("[models.x]\n" + HUB + "sampling = { top_k = 1.5 }", "top_k = 1.5 in sampling in .* is not a positive whole"),
    ("[models.x]\n" + HUB + "sampling = 1", "sampling = 1 in .* is no table"),
    ("[models.x]\ncontext = 1", "source = None in .* names no one place; .*give a wheel, hub, path or server"),
    ('[models.x]\nsource = "x"', "source = 'x' in .* names no one place"),
    ('[models.x]\nsource = { hub = "a/b", path = "c" }', "names no one place"),
    ('[models.x]\nsource = { hub = "a/b", branch = "c" }', "unknown key branch = 'c' in source in"),
    ('[models.x]\nsource = { path = "a\\u0000b" }', "is not a path"),
    ('[models.x]\nsource = { path = "" }', "is not a path"),
    (
        "[models.x]\n" + SERVER + "format = 'hf'",
        r"format in \[models.x\] of .* is not for a server; .*its keys: source",
    ),
    ("[models.x]\nsource = { server = 3 }", "server in source in .* is not text"),
    ('[models.x]\nsource = { hub = "../b" }', r"hub = '\.\./b' in .* is not allowed"),
    ('[models.x]\nsource = { hub = "a/b/../c" }', "is not allowed"),
    ('[models.x]\nsource = { hub = "a/b", revision = "../../x" }', "revision = .* is not allowed"),
    ('[models.x]\nsource = { hub = "a/b", file = "../x.gguf" }', "file = .* is not allowed"),
    (WHEEL.format("w", "0" * 64, "../../etc/passwd", "0" * 64), "member = .* is not allowed"),
    (WHEEL.format("w", "0" * 64, "/etc/passwd", "0" * 64), "member = .* is not allowed"),
    (WHEEL.format("w", "0" * 63, "w/x", "0" * 64), "sha256 = .* is not allowed"),
    (WHEEL.format("-r", "0" * 64, "w/x", "0" * 64), "wheel = '-r' in .* is not allowed"),
    ('[models."../x"]\n' + HUB, r"model name '\.\./x' in .* is not allowed"),
    ('[models."a/../../b"]\n' + HUB, "model name .* is not allowed"),
    ('[models."/abs"]\n' + HUB, "model name .* is not allowed"),
    ('[models."a\\u0000"]\n' + HUB, r"model name 'a\\x00' in"),
    ('[models."ｓmol"]\n' + HUB, "model name .* is not allowed"),
    ('[models.".hidden"]\n' + HUB, "model name .* is not allowed"),
    ("[models.Upper]\n" + HUB, "model name 'Upper' in .* is not allowed"),
    ("models = 3", "models = 3 in .* is no table"),
    ("[models]\nx = 3", "models.x = 3 in .* is no entry"),
    ('default = "none"', "default = 'none' in .*models.toml names no model"),
    ("default = [1]", r"default = \[1\] in .*models.toml is not text"),
    ("x = " + "9" * 5000, "models.toml cannot be read: Exceeds the limit"),
    ("x = " + "[" * 5000, "models.toml cannot be read: it is nested too deeply"),
    ("[models.x]\ncontext = = 3", "models.toml cannot be read: Invalid value .at line 2, column 11."),
]


@pytest.mark.parametrize("text, message", WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_wrong_file_is_one_line_that_names_key_value_and_file(
    write: Callable[[str], Path], text: str, message: str
) -> None:
    write(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_catalog()
    assert "\n" not in str(caught.value) and "no model can be looked up" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('server = "ftp://h"', "'ftp://h' is no address of a server"),
        ('server = "http://h", model = ""', "'' is no model of a server"),
        ('server = "https://h", insecure = true', "https://h is another machine; its certificate has to be looked at"),
    ],
)
def test_a_server_that_is_none_is_one_line_that_names_the_file(
    write: Callable[[str], Path], source: str, message: str
) -> None:
    write("[models.x]\nsource = { " + source + " }")
    with pytest.raises(ConfigError, match=message) as caught:
        load_catalog()
    assert str(caught.value).startswith("source in [models.x] of") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given", ['key_env = "sk-Abc"', 'key_env = "sk_abc"', 'key = "sk-Abc"', 'key_env = ["sk-Abc"]']
)
def test_what_may_be_a_key_is_not_shown(write: Callable[[str], Path], given: str) -> None:
    write('[models.x]\nsource = { server = "https://h", ' + given + " }")
    with pytest.raises(ConfigError, match="key") as caught:
        load_catalog()
    assert "sk" not in str(caught.value)


def test_an_entry_may_be_on_a_server(write: Callable[[str], Path]) -> None:
    write('[models.x]\nsource = { server = "http://h:1/", model = "a/b c", key_env = "KEY" }\nthink = "off"')
    entry = resolve("x")
    assert entry.source == ServerSource("http://h:1/", "a/b c", "KEY") and entry.think == "off"
    assert resolve(ServerSource("http://h:1/", "a/b c", "KEY").reference).source == ServerSource(
        "http://h:1/v1", "a/b c"
    )
    with pytest.raises(UsageError, match=r"x runs on the server http://h:1/; none of its files are here"):
        fetch(entry)


def test_an_address_without_a_model_has_a_name_too() -> None:
    entry = resolve("server:http://localhost:1/v1#")
    assert entry.source == ServerSource("http://localhost:1/v1") and entry.name == "server:http://localhost:1/v1"


@pytest.mark.parametrize(
    "text", ["server:", "server:#x", "server:ftp://h#x", "server:http://a@h#x", "server:http://h#\n"]
)
def test_no_servers_model(text: str) -> None:
    with pytest.raises(UsageError, match="nothing was sent"):
        resolve(text)


def test_bytes_that_are_no_text_are_one_line(write: Callable[[str], Path]) -> None:
    write("").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"models.toml cannot be read: .*can't decode byte"):
        load_catalog()


def test_a_path_is_found_even_with_a_broken_catalog(write: Callable[[str], Path], tmp_path: Path) -> None:
    write("broken")
    assert resolve(str(tmp_path)).source == LocalPath(tmp_path)


def test_names_of_packages_stay_in_our_cache() -> None:
    source = load_catalog().entries["smollm2-135m"].source
    assert isinstance(source, WheelSource)
    assert fetch_wheel.cached(source).parent.parent == paths.cache_dir() / "models"


def test_lookup_suggests_nothing_when_nothing_is_near() -> None:
    with pytest.raises(CatalogError) as caught:
        lookup(load_catalog(), "zzzzzz")
    assert str(caught.value).endswith("nothing was loaded; `llamachat models list` shows all names")


def test_an_installed_package_finds_models_toml_inside_itself(tmp_path: Path) -> None:
    shutil.copytree(
        Path(catalog.__file__).parents[1], tmp_path / "llamachat", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(load_catalog().files[0], tmp_path / "llamachat")
    code = "from llamachat.models import catalog; print(catalog.resolve(None).name, catalog.load_catalog().files[0])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.split() == ["smollm2-135m", str(tmp_path / "llamachat/models.toml")]


def test_a_long_value_makes_no_long_error(write: Callable[[str], Path]) -> None:
    write(f'[models.x]\n{HUB}\ndialog = "{"a" * 100_000}"')
    with pytest.raises(ConfigError) as caught:
        load_catalog()
    assert len(str(caught.value)) < 500


def test_the_home_of_a_user_that_there_is_not_is_a_place_where_nothing_is(write: Callable[[str], Path]) -> None:
    file = write('[models.x]\nsource = { path = "~nobody-of-this-name/x" }')
    assert load_catalog().entries["x"].source == LocalPath(file.parent / "~nobody-of-this-name/x")
    with pytest.raises(CatalogError, match="is not there"):
        fetch(resolve("x"))
