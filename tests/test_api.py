"""api.py against Meta's algorithm (llama/generation.py), written out slowly for one prompt of a batch."""

import math
from dataclasses import replace

import numpy as np
import pytest
from engines import HashEngine, hash_model
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat import Llama
from llamachat.dialog import Message
from llamachat.errors import DoesNotFitError, ModelError, UsageError

STOPS = {257, 258}
prompts = st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=20), min_size=1, max_size=4)


def build(slots: int = 40, batch: int = 4, seed: int = 1, texts: int = 2) -> Llama:
    """Room for so many texts of so many slots, so that larger batches have to wait for each other."""
    return Llama(replace(hash_model(slots * texts), parallel=texts), max_batch_size=batch, seed=seed)


def metas(prompt: list[int], max_seq_len: int, max_gen_len: int | None, echo: bool) -> tuple[list[int], list[float]]:
    """Greedy: tokens up to max_gen_len or max_seq_len, cut before the first stop; logprobs of the plain softmax."""
    engine = HashEngine(max_seq_len, 259)
    limit = max_seq_len - 1 if not max_gen_len or max_gen_len >= max_seq_len else max_gen_len
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
        llama.generate([[1] * 16])


def test_text_completion_gives_text_token_texts_and_logprobs() -> None:
    (result,) = build().text_completion(["ab"], temperature=0, max_gen_len=5, logprobs=True, echo=True)
    expected, logprobs = metas(list(b"ab"), 40, 5, echo=True)
    assert result["generation"] == bytes(t for t in expected if t < 256).decode(errors="replace")
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
        text = bytes(t for t in expected if t < 256).decode(errors="replace")
        assert result["generation"] == {"role": "assistant", "content": text}
        assert result["logprobs"] == pytest.approx(logprobs, abs=1e-6)


def test_ids_that_the_model_lacks_and_impossible_numbers_are_refused() -> None:
    for unknown in (-1, 259, 10**12):
        with pytest.raises(ModelError, match=f"token {unknown}, the model's vocabulary 259"):
            build().generate([[1, unknown, 2]])
    with pytest.raises(UsageError, match="max_gen_len is -1"):
        build().generate([[1]], -1)
    with pytest.raises(UsageError, match="seed is -1"):
        build(seed=-1)
