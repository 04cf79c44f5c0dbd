"""Vectors of texts beside transformers' hidden states, and the API's other outputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_hf, save_tokenizer, tiny_model
from gguf_files import random_state, write_gguf
from numpy.typing import NDArray

from llamachat import Llama
from llamachat.errors import DoesNotFitError, ModelError, UsageError
from llamachat.formats.detect import open_checkpoint
from llamachat.generation.embedding import Embedder, pool_of
from llamachat.generation.texts import Outcome, Runner, made
from llamachat.models.load import LoadedModel, load
from quantize.convert import convert
from quantize.recipe import Recipe

TEXTS = ["the quick brown fox", "jumps", "over the lazy dog " * 60, "while many others look on"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_hf(tiny_model(), tmp_path_factory.mktemp("embedding"))
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=["native", "torch"])
def model(request: pytest.FixtureRequest, folder: Path) -> LoadedModel:
    return load(str(folder), engine=request.param, kv_bits=32, dtype="float32" if request.param == "torch" else None)


def states(model: LoadedModel, text: str) -> NDArray[np.float32]:
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
    with torch.no_grad():
        return tiny_model().model(torch.tensor([ids])).last_hidden_state[0].numpy()


def vectors(embedder: Embedder, texts: list[str]) -> list[Any]:
    found = Runner(embedder.model, embedder.rows, outputs="hidden").run(made(embedder.job, text) for text in texts)
    return [embedder.embedded(each).vector if isinstance(each, Outcome) else each for each in found]


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_vectors_are_pooled_hidden_states_of_transformers(pool: str, model: LoadedModel) -> None:
    """A batch of unequal lengths, one of them over the step of a prefill."""
    found = vectors(Embedder(model, pool_of(model, pool), normalize=False), TEXTS)
    for vector, text in zip(found, TEXTS, strict=True):
        right = states(model, text)
        np.testing.assert_allclose(vector, right.mean(0) if pool == "mean" else right[-1], atol=1e-4)
    for unit, vector in zip(vectors(Embedder(model, pool_of(model, pool)), TEXTS), found, strict=True):
        np.testing.assert_allclose(unit, vector / np.linalg.norm(vector), atol=1e-6)


def test_a_text_that_is_too_long_is_an_error_in_its_place(model: LoadedModel) -> None:
    first, second, third = vectors(Embedder(model, "mean"), ["a", "many " * 9000, "a"])
    assert isinstance(second, DoesNotFitError) and np.array_equal(first, third)


def test_numbers_that_are_none_are_refused(folder: Path) -> None:
    broken = load(str(folder), engine="torch", dtype="float32")
    broken.engine.model.final_norm.fill_(torch.nan)  # type: ignore[attr-defined]
    (found,) = vectors(Embedder(broken, "last"), ["a"])
    assert isinstance(found, ModelError) and "values that are no numbers" in str(found)
    broken.engine.model.final_norm.fill_(0)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="nothing but zeros of the text"):
        vectors(Embedder(broken, "last"), ["a"])


@pytest.mark.parametrize(
    ("kinds", "pooling"),
    [
        (["Transformer", "Pooling", "Normalize"], "last"),
        (["Transformer", "Pooling", "Dense", "Normalize"], "last and a module 'Dense'"),
    ],
)
def test_a_module_behind_the_pooling_is_told_of(kinds: list[str], pooling: str, folder: Path, tmp_path: Path) -> None:
    """Without it the vectors would be others."""
    path = with_pooling(folder, tmp_path, pooling_mode_lasttoken=True)
    modules = [{"idx": number, "type": f"sentence_transformers.models.{kind}"} for number, kind in enumerate(kinds)]
    (path / "modules.json").write_text(json.dumps(modules))
    loaded = load(str(path))
    assert loaded.checkpoint.pooling == pooling
    if pooling != "last":
        with pytest.raises(ModelError, match="makes vectors by last and a module 'Dense'; that is not done here"):
            pool_of(loaded)
    for broken in ("[", "[3]", '[{"type": 3}]', "3", "null", '"x"', "[null]"):
        (path / "modules.json").write_text(broken)
        with pytest.raises(ModelError, match=r"modules\.json"):
            open_checkpoint(path)


def with_pooling(folder: Path, to: Path, **modes: Any) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    (to / "1_Pooling").mkdir()
    (to / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **modes}))
    return to


@pytest.mark.parametrize(
    ("modes", "pooling"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_cls_token": True, "pooling_mode_lasttoken": True}, "last and first"),
        ({}, None),
    ],
)
def test_a_folder_says_how_its_model_pools(modes: Any, pooling: str | None, folder: Path, tmp_path: Path) -> None:
    path = with_pooling(folder, tmp_path, **modes)
    assert open_checkpoint(path).pooling == pooling
    loaded = load(str(path))
    if pooling == "last and first":
        with pytest.raises(
            ModelError, match="makes vectors by last and first; that is not done here; give --pool mean"
        ):
            pool_of(loaded)
        assert pool_of(loaded, "mean") == "mean"
    else:
        assert pool_of(loaded) == (pooling or "mean")


def test_a_converted_model_pools_as_its_source(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = open_checkpoint(with_pooling(folder, tmp_path / "source", pooling_mode_lasttoken=True))
    convert(source, tmp_path / "int8", Recipe("int8"))
    assert open_checkpoint(tmp_path / "int8").pooling == "last"


@pytest.mark.parametrize(("kind", "pooling"), [(3, "last"), (1, "mean"), (0, None)])
def test_a_gguf_file_says_how_its_model_pools(kind: int, pooling: str | None, tmp_path: Path) -> None:
    config = tiny_model().config.to_dict()
    path = write_gguf(tmp_path / "a.gguf", random_state(config), config, metadata={"llama.pooling_type": kind})[0]
    assert open_checkpoint(path).pooling == pooling


@pytest.fixture(scope="module")
def llama(folder: Path) -> Llama:
    return Llama.build(str(folder), engine="torch", dtype="float32", max_seq_len=300, max_batch_size=2)


IDS = [int(each) for each in np.random.default_rng(3).integers(3, 300, 200)]


def test_the_api_gives_what_transformers_does(llama: Llama) -> None:
    reference = tiny_model(attn_implementation="eager")
    with torch.no_grad():
        right = reference(torch.tensor([IDS]), output_hidden_states=True, output_attentions=True)
    np.testing.assert_allclose(llama.logits(IDS), right.logits[0], atol=1e-4)
    states = torch.cat(right.hidden_states).numpy()  # up to 60
    np.testing.assert_allclose(llama.hidden_states(IDS), states, atol=1e-5 * np.abs(states).max())
    np.testing.assert_allclose(llama.attentions(IDS), torch.cat(right.attentions), atol=1e-4)
    logits, hidden = llama.logits(IDS, return_hidden_states=True)
    np.testing.assert_allclose(hidden, right.hidden_states[-1][0], atol=1e-4)
    np.testing.assert_allclose(logits, right.logits[0], atol=1e-4)


def test_an_answer_in_between_is_as_before(llama: Llama) -> None:
    before = llama.text_completion(["the quick"], temperature=0, max_gen_len=8)
    llama.embed(TEXTS[:2])
    llama.hidden_states(IDS)
    assert llama.text_completion(["the quick"], temperature=0, max_gen_len=8) == before


def test_the_api_embeds(llama: Llama) -> None:
    found = llama.embed(TEXTS[:2], pool="last")
    assert found.shape == (2, 64) and found.dtype == np.float32
    right = [states(llama.model, text)[-1] for text in TEXTS[:2]]
    np.testing.assert_allclose(found, [each / np.linalg.norm(each) for each in right], atol=1e-5)
    assert llama.embed([]).shape == (0, 64)
    with pytest.raises(UsageError, match="pool is 'max'; allowed is one of mean, last"):
        llama.embed(["a"], pool="max")
    with pytest.raises(UsageError, match="is not a list of texts"):
        llama.embed("a")
    with pytest.raises(DoesNotFitError):
        llama.embed(["the quick " * 400])


@pytest.mark.parametrize("output", ["logits", "hidden_states", "attentions"])
def test_bad_tokens_are_refused(output: str, llama: Llama) -> None:
    with pytest.raises(UsageError, match="there are no tokens"):
        getattr(llama, output)([])
    with pytest.raises(ModelError, match="token 99999 is not in the vocabulary"):
        getattr(llama, output)([1, 99999])
    with pytest.raises(DoesNotFitError):
        getattr(llama, output)([1] * 301)


def test_what_takes_more_memory_than_there_is_is_refused(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.api.outputs.available_memory", lambda: 10**6)
    with pytest.raises(DoesNotFitError, match="attentions of so many tokens take"):
        llama.attentions(IDS)


def test_mindformers_setting_is_honoured(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"output_hidden_states": True}))
    logits, hidden = Llama.build(str(tmp_path)).logits([1, 5])
    assert logits.shape[0] == hidden.shape[0] == 2 and hidden.shape[1] == 64


def test_the_native_engine_says_what_it_lacks(folder: Path) -> None:
    with pytest.raises(UsageError, match="does not give hidden states; nothing was computed; use --engine torch"):
        Llama.build(str(folder), engine="native").hidden_states([1])
