"""How a hub's models are written, and which of a repository's files a reference means."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat import paths
from llamachat.errors import CatalogError
from llamachat.models.catalog import resolve
from llamachat.models.fetch import choice
from llamachat.models.fetch import hub as fetch_hub
from llamachat.models.sources import FOLDER, RULES, HubSource

FILE = "x-Q4_0.gguf"
WRITTEN = {
    "hf:a/b:q4_k_m": HubSource("a/b", quant="Q4_K_M"),
    "hf:a/b:UD-Q4_K_XL@v1": HubSource("a/b", "v1", quant="UD-Q4_K_XL"),
    f"hf:a/b:{FILE}": HubSource("a/b", file=FILE),
    f"hf:a/b/sub/{FILE}@refs/pr/1": HubSource("a/b", "refs/pr/1", f"sub/{FILE}"),
    "hf:a/b:safetensors": HubSource("a/b", quant=FOLDER),
    "hf.co/a/b": HubSource("a/b"),
    "hf.co/a/b:Q8_0": HubSource("a/b", quant="Q8_0"),
    "HF.co/a/b": HubSource("a/b"),
    "hf:hf.co/a/b:Q8_0": HubSource("a/b", quant="Q8_0"),
    "huggingface.co/a/b/": HubSource("a/b"),
    "https://huggingface.co/a/b": HubSource("a/b"),
    "http://www.huggingface.co/a/b?library=x#top": HubSource("a/b"),
    "https://huggingface.co/a/b/tree/main": HubSource("a/b"),
    "https://huggingface.co/a/b/tree/refs%2Fpr%2F4": HubSource("a/b", "refs/pr/4"),
    "https://huggingface.co/a/b/tree/main/UD-Q4_K_XL": HubSource("a/b", quant="UD-Q4_K_XL"),
    f"https://huggingface.co/a/b/blob/v2/sub/{FILE}": HubSource("a/b", "v2", f"sub/{FILE}"),
    f"https://huggingface.co/a/b/resolve/main/{FILE}?download=true": HubSource("a/b", file=FILE),
    f"https://huggingface.co/a/b?show_file_info={FILE}": HubSource("a/b", file=FILE),
    f"mirror.example:8000/hub/a/b/blob/main/{FILE}": HubSource("a/b", file=FILE),
}


@pytest.fixture(autouse=True)
def mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8000/hub/")


@pytest.mark.parametrize(("text", "source"), WRITTEN.items(), ids=str)
def test_every_way_to_write_it(text: str, source: HubSource) -> None:
    entry = resolve(text)
    assert entry.source == source and entry.name == source.reference
    assert resolve(source.reference).source == source
    assert entry.format == ("gguf" if source.file or source.quant not in (None, FOLDER) else None)


NONE = [
    "hf.co/", "hf.co/a", "https://huggingface.co/datasets/a/b", "https://huggingface.co/spaces/a", "hf.co/a/b:../x",
    "https://huggingface.co/a/b/blob/main/config.json", "https://huggingface.co/a/b/blob/main/../../x.gguf",
    "https://huggingface.co/a/b/blob/main/%2e%2e/x.gguf", "https://huggingface.co/a%2f../b", "hf.co/a/b/discussions",
    "https://huggingface.co/a/b/tree/main/x y", "hf:a/b:", "hf:a/b:-x", "https://huggingface.co/a/b?show_file_info=../x.gguf",
    "https://hf.co/[a/b", "hf.co/a/b?" + "x=1&" * 200,
]  # fmt: skip


@pytest.mark.parametrize("text", NONE)
def test_a_page_that_is_no_models_is_one_line(text: str) -> None:
    with pytest.raises(CatalogError, match="is no repository; nothing was loaded; write hf:owner/repo") as refused:
        resolve(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["https://example.com/x.gguf", "https://huggingface.co.evil/a/b", "https://u@hf.co/a/b"]
)
def test_another_address_of_the_web_is_told_where_models_come_from(text: str) -> None:
    with pytest.raises(
        CatalogError, match=r"there is no file or folder .*; no model was loaded; of the web, models come"
    ):
        resolve(text)


def test_a_repository_without_its_mark_is_offered_with_it() -> None:
    with pytest.raises(CatalogError, match="write hf:someone/something for a repository of the hub"):
        resolve("someone/something")


PIECES = st.sampled_from(
    ["hf:", "hf.co/", "https://", "huggingface.co/", "a", "b", "/", ":", "@", "..", "%2e", "%2F", "blob", "tree", "main",
     "resolve", ".gguf", "Q4_K_M", "?", "#", "show_file_info=", "\\", " ", "\n", "\0", "-", "ÿ", "mirror.example:8000/hub/"]
)  # fmt: skip


MARKED = st.tuples(
    st.sampled_from(["hf:", "hf.co/", "https://huggingface.co/"]),
    st.lists(PIECES, max_size=12).map("".join) | st.text(),
)


@given(MARKED.map("".join))
def test_any_text_is_a_checked_source_or_one_line(text: str) -> None:
    try:
        source = resolve(text).source
    except CatalogError as error:
        assert "\n" not in str(error)
        return
    if isinstance(source, HubSource):
        parts = {key: getattr(source, key) for key in ("hub", "revision", "file", "quant")}
        assert all(RULES[key].fullmatch(part) for key, part in parts.items() if part)
        assert fetch_hub.folder(source).parent == paths.hub_cache_dir() and ".." not in re.split(r"[/\\]", text)


QUANTS = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": "Q4_1",
    "Phi-3-mini-4k-instruct-q4.gguf": "Q4",
    "qwen2.5-0.5b-instruct-fp16.gguf": "F16",
    "m_q4_k_m.gguf": "Q4_K_M",
    "X.i1-Q4_K_M-imat.gguf": "Q4_K_M",
    "X-Q4_0_4_4.gguf": "Q4_0_4_4",
    "X-UD-Q4_K_XL.gguf": "UD-Q4_K_XL",
    "BF16/foo-00001-of-00002.gguf": "BF16",
    "UD-Q2_K_XL/Qwen3-UD-Q2_K_XL-00001-of-00009.gguf": "UD-Q2_K_XL",
    "gpt-oss-20b-mxfp4.gguf": "MXFP4",
    "model.gguf": "",
    "Qwen2.5-7B.gguf": "",
}


@pytest.mark.parametrize(("name", "quant"), QUANTS.items())
def test_a_quant_is_read_from_a_name(name: str, quant: str) -> None:
    assert choice.quant_of(name) == quant


@pytest.mark.parametrize("quant", ["IQ2_XXS", "IQ3_M", "IQ1_S", "TQ1_0", "Q4_0_4_4", "NVFP4", "UD-IQ2_M"])
def test_kinds_that_are_not_read_are_known_by_name(quant: str) -> None:
    assert not choice.is_read(quant)


@pytest.mark.parametrize(
    "quant", ["Q4_K_M", "UD-Q4_K_XL", "IQ4_XS", "IQ4_NL", "Q8_0", "Q3_K_XL", "F16", "BF16", "MXFP4_MOE", ""]
)
def test_kinds_that_are_read(quant: str) -> None:
    assert choice.is_read(quant)


def listed(*names: str) -> list[choice.GGUFFile]:
    """Files whose sizes are those of real ones, about: bits a weight."""
    bits = {
        "F16": 16,
        "BF16": 16,
        "Q8": 8,
        "Q6": 6,
        "Q5": 5,
        "Q4": 4,
        "IQ4": 4,
        "Q3": 3,
        "IQ3": 3,
        "Q2": 2,
        "IQ2": 2,
        "": 9,
    }
    return choice.models(
        {name: bits[choice.quant_of(name).removeprefix("UD-").partition("_")[0]] * 100 for name in names}
    )


ALL = [
    "Q2_K",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "IQ3_M",
    "Q4_0",
    "IQ4_XS",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
    "F16",
]


@pytest.mark.parametrize(
    ("quants", "room", "expected"),
    [
        (ALL, 9999, "Q4_K_M"),
        (ALL, 399, "Q3_K_L"),
        (ALL, 299, "Q2_K"),
        (ALL, 1, "Q2_K"),
        (["Q8_0", "IQ4_XS", "Q4_0"], 9999, "IQ4_XS"),
        (["UD-Q4_K_XL", "UD-Q2_K_XL", "Q8_0"], 9999, "UD-Q4_K_XL"),
        (["UD-Q4_K_XL", "UD-Q2_K_XL", "Q3_K_M"], 300, "Q3_K_M"),
        (["Q8_0", "F16"], 9999, "Q8_0"),
        (["F16", "IQ2_XXS"], 1, "F16"),
    ],
)
def test_the_best_that_fits_is_chosen(quants: list[str], room: int, expected: str) -> None:
    found = listed(*(f"m-{quant}.gguf" for quant in quants))
    assert choice.choose("a/b", found, None, lambda size: size <= room).quant == expected


@pytest.mark.parametrize(("asked", "expected"), [("q8_0", "Q8_0"), ("Q4_K_XL", "UD-Q4_K_XL"), ("FP16", "F16")])
def test_a_quant_that_is_named_is_taken_whether_it_fits_or_not(asked: str, expected: str) -> None:
    found = listed("m-Q8_0.gguf", "m-UD-Q4_K_XL.gguf", "m-f16.gguf", "m-Q4_K_M.gguf")
    assert choice.choose("a/b", found, asked, lambda size: False).quant == expected


@pytest.mark.parametrize(
    ("names", "quant", "message"),
    [
        (["m-Q4_0.gguf", "m-Q8_0.gguf"], "Q9_K", "a/b has no Q9_K; nothing was fetched; it has Q4_0, Q8_0$"),
        (["m-IQ2_M.gguf", "m-Q8_0.gguf"], "iq2_m", "IQ2_M of a/b is a kind of GGUF that is not read; .* it has Q8_0$"),
        (["m-IQ2_M.gguf"], None, "a/b has no GGUF model that is read; nothing was fetched; it has IQ2_M$"),
        (["1b-Q4_0.gguf", "3b-Q4_0.gguf"], None, "several models of Q4_0; .*name one, hf:a/b/FILE: 1b-Q4_0.gguf, 3b-Q4_0"),
        ([], "Q4_0", "a/b has no Q4_0; nothing was fetched; it has no GGUF models"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_is_one_line_with_what_there_is(
    names: list[str], quant: str | None, message: str
) -> None:
    with pytest.raises(CatalogError, match=message) as refused:
        choice.choose("a/b", listed(*names), quant, lambda size: True)
    assert "\n" not in str(refused.value)


def test_what_is_no_model_is_never_chosen_and_parts_count_together() -> None:
    sizes = {
        f"mm/{name}.gguf": 1 for name in ("mmproj-F16", "x.imatrix", "ggml-vocab-llama", "a-lora-Q4_0", "MMPROJ-Q8_0")
    }
    sizes |= {f"Q4_K_M/m-Q4_K_M-{number:05}-of-00003.gguf": 100 for number in (1, 2, 3)}
    sizes |= {f"m-Q8_0-{number:05}-of-00003.gguf": 100 for number in (1, 3)}  # not whole
    sizes |= {"x-00001-of-99999.gguf": 5, "README.md": 7, "parts/vocab.gguf": 1, "lora/x-Q4_K_M.gguf": 1}
    (found,) = choice.models(sizes)
    assert found.size == 300 and found.quant == "Q4_K_M" and found.name == "Q4_K_M/m-Q4_K_M-00001-of-00003.gguf"
    assert choice.parts_of(found.parts[2]) == found.parts


def test_an_error_names_no_more_than_people_read() -> None:
    assert choice.listed(["a", "b"]) == "a, b"
    assert choice.listed(f"{number:010}" for number in range(1000)).endswith(" and 960 more")
    assert len(choice.listed(["x" * 400] * 1000)) < 520 and len(choice.listed(["x" * 4000])) == 500
