"""The Python API over an engine that knows its answers: Meta's algorithm, written out slowly for one prompt of a batch."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hash_engine import SPECIALS, HashEngine, hash_model
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat import Llama
from llamachat.core.dialog import Message
from llamachat.errors import DoesNotFitError, ModelError, UsageError

STOPS = {257, 258}
SIZES = st.integers(1, 20) | st.just(40)  # 40: all of max_seq_len
prompts = st.lists(
    SIZES.flatmap(lambda size: st.lists(st.integers(0, 255), min_size=size, max_size=size)), min_size=1, max_size=4
)


def build(slots: int = 40, batch: int = 4, seed: int = 1, texts: int = 2) -> Llama:
    """Room for so many texts of so many slots, so that larger batches have to wait for each other."""
    return Llama(replace(hash_model(slots * texts), parallel=texts), max_batch_size=batch, seed=seed)


def metas(prompt: list[int], max_seq_len: int, max_gen_len: int | None, echo: bool) -> tuple[list[int], list[float]]:
    """Greedy: tokens up to max_gen_len or max_seq_len, cut before the first stop; logprobs of the plain softmax."""
    engine = HashEngine(max_seq_len, 259)
    limit = max_seq_len - 1 if max_gen_len is None else max_gen_len
    ids, scores = list(prompt), [0.0]
    for at in range(1, min(max_seq_len, len(prompt) + limit)):
        logits = engine.row(ids[:at]).astype(np.float64)
        if at == len(ids):
            ids.append(int(logits.argmax()))
        scores.append(float(logits[ids[at]] - math.log(np.exp(logits).sum())))
    start = 0 if echo else len(prompt)
    end = next((i for i in range(len(prompt), len(ids)) if ids[i] in STOPS), len(ids))
    return ids[start:end], scores[start:end]


@settings(deadline=None)
@given(batch=prompts, length=st.none() | st.integers(0, 50), echo=st.booleans())
def test_greedy_generation_is_metas_for_each_prompt_of_a_batch(
    batch: list[list[int]], length: int | None, echo: bool
) -> None:
    tokens, scores = build().generate(batch, length, temperature=0, logprobs=True, echo=echo)
    assert scores is not None
    for prompt, got, score in zip(batch, tokens, scores, strict=True):
        expected, logprobs = metas(prompt, 40, length, echo)
        assert got == expected
        assert score == pytest.approx(logprobs, abs=1e-6)


def test_without_logprobs_there_are_none() -> None:
    assert build().generate([[1]], 3, temperature=0)[1] is None


def test_same_seed_same_text_and_prompts_of_a_batch_draw_apart() -> None:
    batch = [[1, 2]] * 4
    first, again = (build(seed=7).generate(batch, 20, temperature=1.0)[0] for _ in range(2))
    assert first == again
    assert len({tuple(tokens) for tokens in first}) == 4
    assert build(seed=8).generate(batch, 20, temperature=1.0)[0] != first


def test_a_prompt_gives_the_same_alone_and_in_a_batch_and_again_after_one() -> None:
    llama, batch = build(), [[1, 2, 3], [1, 2, 4], [7]]
    alone = [llama.generate([prompt], 9, temperature=0)[0][0] for prompt in batch]
    assert llama.generate(batch, 9, temperature=0)[0] == alone
    assert llama.generate(batch[:1], 9, temperature=0)[0] == alone[:1]


def test_a_dialog_that_goes_on_is_not_computed_again() -> None:
    llama = build(slots=200)
    engine = llama.model.engine
    assert isinstance(engine, HashEngine)
    llama.generate([list(range(100))], 5, temperature=0)
    before = sum(engine.forwarded)
    llama.generate([list(range(110))], 5, temperature=0)
    assert sum(engine.forwarded) - before < 20


def test_too_many_empty_and_too_long_prompts_are_refused() -> None:
    llama = build(slots=16, batch=2)
    with pytest.raises(UsageError, match="max_batch_size=2"):
        llama.generate([[1]] * 3)
    with pytest.raises(UsageError, match="without tokens"):
        llama.generate([[1], []])
    with pytest.raises(DoesNotFitError, match="max_seq_len=16"):
        llama.generate([[1] * 17])


def text_of(ids: list[int]) -> str:
    """Bytes, and control tokens by name."""
    names = {token: name.encode() for name, token in SPECIALS.items()}
    return b"".join(names.get(token) or bytes([token]) for token in ids).decode(errors="replace")


def test_text_completion_gives_text_token_texts_and_logprobs() -> None:
    (result,) = build().text_completion(["ab"], temperature=0, max_gen_len=5, logprobs=True, echo=True)
    expected, logprobs = metas(list(b"ab"), 40, 5, echo=True)
    assert result["generation"] == text_of(expected)
    assert len(result["tokens"]) == len(result["logprobs"]) == len(expected)
    assert result["logprobs"] == pytest.approx(logprobs, abs=1e-6)
    assert result["tokens"][:2] == ["a", "b"]
    assert list(build().text_completion(["ab"], temperature=0, max_gen_len=5)[0]) == ["generation"]


def test_chat_completion_answers_rendered_dialogs() -> None:
    llama = build(slots=200)
    dialogs = [
        [{"role": "user", "content": "hi"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "ho"}],
    ]
    results = llama.chat_completion(dialogs, temperature=0, max_gen_len=5, logprobs=True)
    for dialog, result in zip(dialogs, results, strict=True):
        prompt = llama.model.dialog.encode([Message.parse(message) for message in dialog])
        expected, logprobs = metas(prompt, 200, 5, echo=False)
        assert result["generation"] == {"role": "assistant", "content": text_of(expected)}
        assert result["logprobs"] == pytest.approx(logprobs, abs=1e-6)


def test_ids_that_the_model_lacks_and_impossible_numbers_are_refused() -> None:
    for unknown in (-1, 259, 10**12):
        with pytest.raises(ModelError, match=f"token {unknown}, the model's vocabulary 259"):
            build().generate([[1, unknown, 2]])
    with pytest.raises(UsageError, match="max_gen_len is -1"):
        build().generate([[1]], -1)
    with pytest.raises(UsageError, match="seed is -1"):
        build(seed=-1)
    with pytest.raises(UsageError, match="max_batch_size is 0"):
        build(batch=0)


def test_no_length_scores_the_prompt_and_computes_nothing_else() -> None:
    for batch in ([[1, 2, 3]], [[1, 2, 3], [4]], [[5] * 40] * 3):
        llama = build()
        tokens, scores = llama.generate(batch, max_gen_len=0, logprobs=True, echo=True)
        assert tokens == batch
        assert scores is not None and [len(each) for each in scores] == [len(prompt) for prompt in batch]
        assert all(each[0] == 0.0 and max(each[1:], default=-1.0) < 0 for each in scores)
        assert llama.generate(batch, max_gen_len=0, logprobs=True) == ([[] for _ in batch], [[] for _ in batch])
        assert llama.generate([], max_gen_len=0) == ([], None)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda ids: [np.int32(i) for i in ids]])
def test_ids_may_be_lists_arrays_or_tensors(kind: Callable[[list[int]], Any]) -> None:
    expected = build().generate([[1, 2, 3], [4, 5, 6]], 9, temperature=0)
    assert build().generate([kind([1, 2, 3]), kind([4, 5, 6])], 9, temperature=0) == expected
    assert build().generate(np.array([[1, 2, 3], [4, 5, 6]]), 9, temperature=0) == expected
    assert build().tokenizer.decode(kind([104, 105])) == "hi"


@pytest.mark.parametrize("bad", ["hi", [1.0], np.array([0.5]), torch.tensor(1), [[1]], None, 1, ["1"], {"a": 1}])
def test_what_are_no_ids_is_refused_in_one_line(bad: Any) -> None:
    with pytest.raises(UsageError, match=r"are no token ids; nothing was computed; [^\n]+$"):
        build().generate([bad])


def test_one_text_or_dialog_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'hello' is not a list of prompts.*text_stream"):
        build().text_completion("hello")
    with pytest.raises(UsageError, match="a dialog is a list of messages"):
        build().chat_completion([{"role": "user", "content": "hi"}])
    with pytest.raises(UsageError, match="is no text"):
        build().text_completion([b"hello"])


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_model_s_own_sampling_has_no_part_in_it(temperature: float) -> None:
    own = {"repetition_penalty": 30.0, "min_p": 0.9, "top_k": 2, "frequency_penalty": 2.0, "logit_bias": {7: 100.0}}
    plain, particular = build(), build()
    vars(particular.model.checkpoint)["sampling"] = own
    batch = [[1, 2, 3], [4]]
    expected = plain.generate(batch, 30, temperature)
    assert particular.generate(batch, 30, temperature) == expected
    assert particular.model.sampling.min_p == 0.9


def test_a_model_that_cannot_chat_still_continues_text() -> None:
    llama = build()
    vars(llama.model)["entry"] = replace(llama.model.entry, dialog=None)
    vars(llama.model)["tokenizer"] = replace(llama.model.tokenizer, specials={})
    vars(llama.model).pop("dialog", None)
    assert llama.text_completion(["ab"], max_gen_len=3)
    with pytest.raises(UsageError, match="no dialog format"):
        _ = llama.formatter
