"""The Python API on real models against an independent reading of Meta's generate(), and scripts in the manner of Meta's."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_hf, save_meta, save_tokenizer, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import logits
from torch import Tensor

import llamachat
from llamachat import Llama, ModelArgs
from llamachat.core.spec import ModelSpec
from llamachat.errors import CatalogError, ModelError, UsageError

LONGEST, PAD = 14, -1
STOPS = list(range(2, 320, 6))  # a sixth of the vocabulary, so that answers of all lengths end by themselves


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_hf(tiny_model(eos_token_id=STOPS), folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[Llama]:
    """With room for fewer texts at once than a batch may have."""
    threads = torch.get_num_threads()
    built = Llama.build(folder, max_seq_len=LONGEST, max_batch_size=2, engine="torch", dtype="float32", threads=1)
    built.max_batch_size = 4
    yield built
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(llama: Llama) -> Callable[[tuple[int, ...]], Tensor]:
    """ids -> the plain softmax's logarithm after each of them, from weights and arithmetic that are not ours."""
    source = tiny_model(eos_token_id=STOPS)
    return cache(lambda ids: logits(source.state_dict(), source.config, list(ids)).log_softmax(-1))


def meta(
    model: Callable[[tuple[int, ...]], Tensor], prompts: list[list[int]], length: int, echo: bool, stops: set[int]
) -> tuple[list[list[int]], list[list[float]]]:
    """Greedy, all prompts in step as one padded batch: what Meta's generate() does, without its two oddities.

    (It cuts an echoed prompt at a stop id, and where all prompts are as long as the whole it scores each token with the
    logits of its own place, not of the one before.)
    """
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    total = min(LONGEST, longest + length)
    rows = [prompt + [PAD] * (total - len(prompt)) for prompt in prompts]
    given = [[token != PAD for token in row] for row in rows]
    scores = [[0.0] * total for _ in rows]
    ended, before = [False] * len(rows), 0
    if shortest == total:
        scores = [[0.0, *(float(model(tuple(row))[at - 1, row[at]]) for at in range(1, total))] for row in rows]
    for at in range(shortest, total):
        for i, row in enumerate(rows):
            after = model(tuple(row[:at]))
            row[at] = row[at] if given[i][at] else int(after[-1].argmax())
            for place in range(before + 1, at + 1):
                scores[i][place] = float(after[place - 1, row[place]])
            ended[i] |= not given[i][at] and row[at] in stops
        before = at
        if all(ended):
            break
    spans = []
    for row, prompt in zip(rows, prompts, strict=True):
        end = min(len(prompt) + length, total)
        stopped = (at for at in range(len(prompt), end) if row[at] in stops)
        spans.append(slice(0 if echo else len(prompt), next(stopped, end)))
    return (
        [row[span] for row, span in zip(rows, spans, strict=True)],
        [score[span] for score, span in zip(scores, spans, strict=True)],
    )


SIZES = st.integers(1, LONGEST) | st.just(LONGEST)
PROMPTS = SIZES.flatmap(lambda size: st.lists(st.integers(0, 319), min_size=size, max_size=size))


@settings(max_examples=40)
@given(
    prompts=st.lists(PROMPTS, min_size=1, max_size=4),
    length=st.none() | st.integers(0, LONGEST + 2),
    echo=st.booleans(),
)
def test_tokens_and_logprobs_are_metas(
    llama: Llama,
    model: Callable[[tuple[int, ...]], Tensor],
    prompts: list[list[int]],
    length: int | None,
    echo: bool,
) -> None:
    limit = LONGEST - 1 if length is None else length  # Meta's, in text_completion and chat_completion
    tokens, scores = meta(model, prompts, limit, echo, set(llama.tokenizer.stop_tokens))
    got, logprobs = llama.generate(prompts, length, temperature=0, logprobs=True, echo=echo)
    assert got == tokens
    assert logprobs is not None
    for found, expected in zip(logprobs, scores, strict=True):
        assert found == pytest.approx(expected, abs=2e-4)
    assert llama.generate(prompts, length, temperature=0, echo=echo) == (tokens, None)


def test_stop_tokens_are_those_that_the_configuration_names(llama: Llama) -> None:
    assert llama.tokenizer.stop_tokens >= set(STOPS)


@pytest.mark.parametrize("text", ["the quick", "é", " two words"])
@pytest.mark.parametrize("echo", [True, False])
def test_a_sentencepiece_stream_is_its_twin(llama: Llama, text: str, echo: bool) -> None:
    whole = llama.text_completion([text], temperature=0, max_gen_len=6, echo=echo)[0]["generation"]
    assert "".join(llama.text_stream(text, temperature=0, max_gen_len=6, echo=echo)) == whole
    for _ in range(30):  # some begin with a space
        stream = llama.text_stream(text, temperature=3.0, max_gen_len=2, echo=echo)
        assert "".join(stream) == stream.result["generation"]
    assert whole.startswith(text.lstrip()) == echo  # the vocabulary's own rule drops spaces before a text


# Building


def test_build_takes_metas_arguments_by_place_and_by_name(tmp_path: Path) -> None:
    """The second runs in two processes, each of which has half of both files."""
    save_meta(tiny_model(), tmp_path, shards=2)
    file = tmp_path / "tokenizer.model"
    by_place = Llama.build(str(tmp_path), str(file), 32, 2, None, 3, force=True)
    by_name = Llama.build(
        ckpt_dir=tmp_path,
        tokenizer_path=file,
        max_seq_len=32,
        max_batch_size=2,
        model_parallel_size=2,
        seed=3,
        force=True,
        dtype="float32",
    )
    ours = Llama.build(tmp_path, max_seq_len=32, max_batch_size=2, model_parallel_size=1, seed=3, force=True)
    texts = [llama.text_completion(["the", "lazy"], max_gen_len=9) for llama in (by_place, by_name, ours)]
    assert texts[0] == texts[1] == texts[2]


def test_a_tokenizer_that_lies_elsewhere_is_taken(tmp_path: Path, spm: Any, sentencepiece_model: Path) -> None:
    home, elsewhere = tmp_path / "checkpoint", tmp_path / "other.model"
    home.mkdir()
    save_meta(tiny_model(), home)
    (home / "tokenizer.model").rename(elsewhere)
    llama = Llama.build(ckpt_dir=home, tokenizer_path=elsewhere, max_seq_len=32, max_batch_size=1, force=True)
    assert llama.tokenizer.n_words == 320
    with pytest.raises(ModelError, match=r"has 32000 tokens, the model's vocabulary 320; the model was not loaded"):
        Llama.build(ckpt_dir=home, tokenizer_path=sentencepiece_model, max_seq_len=32, force=True)
    with pytest.raises(ModelError, match=r"none\.model: .*cannot be used"):
        Llama.build(ckpt_dir=home, tokenizer_path=tmp_path / "none.model", max_seq_len=32, force=True)


def test_a_number_of_processes_that_cannot_be_is_refused_before_loading(tmp_path: Path) -> None:
    save_meta(tiny_model(), tmp_path, shards=2)
    for size in (0, -1, "2", 1.5):
        with pytest.raises(UsageError, match=r"the number of processes is .*; allowed is a whole number from 1 to 256"):
            Llama.build(ckpt_dir=tmp_path, model_parallel_size=size)
    with pytest.raises(
        UsageError, match=r"4 heads, 4 of keys and values, cannot be split over 5 processes; .*; use 1 to 4"
    ):
        Llama.build(ckpt_dir=tmp_path, model_parallel_size=5, force=True)


def test_what_cannot_be_built_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both given"):
        Llama.build("smollm2-135m", ckpt_dir=tmp_path)
    with pytest.raises(CatalogError, match="there is no file or folder"):
        Llama.build(ckpt_dir=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="max_batch_size is 0"):
        Llama.build("smollm2-135m", max_batch_size=0)


# Shape under Meta's names


@given(dim=st.integers(1, 2**14), size=st.integers(1, 2**16))
def test_model_args_give_the_feed_forward_size_by_metas_rule(dim: int, size: int) -> None:
    config = ModelSpec(
        100, 2 * dim, size, 1, num_attention_heads=1, num_key_value_heads=1, head_dim=2, max_position_embeddings=8
    )
    args = ModelArgs.of(config, 4, 8)
    hidden = int(2 * (4 * args.dim) / 3)
    if args.ffn_dim_multiplier is not None:
        hidden = int(args.ffn_dim_multiplier * hidden)
    assert args.multiple_of * ((hidden + args.multiple_of - 1) // args.multiple_of) == size


def test_model_args_have_metas_fields_and_defaults(llama_models_dir: Path, llama: Llama) -> None:
    spec = importlib.util.spec_from_file_location("args", llama_models_dir / "llama_models/llama3/args.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs = {field.name: field.default for field in fields(module.ModelArgs)}
    assert {field.name: theirs[field.name] for field in fields(ModelArgs)} == vars(ModelArgs())
    args = llama.args
    assert (args.dim, args.n_layers, args.n_heads, args.n_kv_heads, args.vocab_size) == (64, 2, 4, 4, 320)
    assert (args.multiple_of, args.ffn_dim_multiplier, args.norm_eps) == (256, None, 1e-5)
    assert (args.max_seq_len, args.use_scaled_rope) == (LONGEST, False)


# Scripts

CHAT = """
from typing import List, Optional
from llamachat import Dialog, Llama

def main(ckpt_dir: str, tokenizer_path: str, temperature: float = 0.6, top_p: float = 0.9, max_seq_len: int = 512,
         max_batch_size: int = 4, max_gen_len: Optional[int] = None):
    model = Llama.build(
        ckpt_dir=ckpt_dir, tokenizer_path=tokenizer_path, max_seq_len=max_seq_len, max_batch_size=max_batch_size
    )
    dialogs: List[Dialog] = [
        [{"role": "user", "content": "How do I boil an egg?"}],
        [
            {"role": "user", "content": "Where shall I go in Rome?"},
            {"role": "assistant", "content": "1. The Forum\\n2. The Pantheon"},
            {"role": "user", "content": "Tell me about #2."},
        ],
        [{"role": "system", "content": "Answer in rhymes"}, {"role": "user", "content": "Where shall I go in Rome?"}],
    ]
    results = model.chat_completion(dialogs, max_gen_len=max_gen_len, temperature=temperature, top_p=top_p)
    for dialog, result in zip(dialogs, results):
        for message in dialog:
            print(f"{message['role'].capitalize()}: {message['content']}\\n")
        print(f"> {result['generation']['role'].capitalize()}: {result['generation']['content']!a}")
"""
TEXT = """
from typing import List
from llamachat import Llama

def main(ckpt_dir: str, tokenizer_path: str, temperature: float = 0.6, top_p: float = 0.9, max_seq_len: int = 128,
         max_gen_len: int = 64, max_batch_size: int = 4):
    model = Llama.build(
        ckpt_dir=ckpt_dir, tokenizer_path=tokenizer_path, max_seq_len=max_seq_len, max_batch_size=max_batch_size
    )
    prompts: List[str] = ["The sea is", "One, two,", "Dear Sir,\\n\\n    I", "cat => chat\\ndog =>"]
    results = model.text_completion(prompts, max_gen_len=max_gen_len, temperature=temperature, top_p=top_p)
    for prompt, result in zip(prompts, results):
        print(prompt)
        print(f"> {result['generation']!a}")
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the files of a Llama 3 release, without its tokenizer."""
    folder = tmp_path_factory.mktemp("release")
    source = tiny_model(torch.bfloat16, vocab_size=128_256)
    save_meta(source, folder, embedding_axis=0, rope_theta=500_000.0, vocab_size=128_256)
    (folder / "tokenizer.model").unlink()
    return folder


@pytest.mark.parametrize(("script", "answers"), [(CHAT, 3), (TEXT, 4)])
def test_scripts_like_metas_run(
    release: Path, llama_models_dir: Path, tmp_path: Path, script: str, answers: int
) -> None:
    file = tmp_path / "script.py"
    file.write_text(script + "\nimport sys\nmain(*sys.argv[1:], temperature=0, max_gen_len=5)\n")
    words = [sys.executable, file, release, llama_models_dir / "llama_models/llama3/tokenizer.model"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    said = [line for line in done.stdout.splitlines() if line.startswith("> ")]
    assert len(said) == answers
    assert all(len(line.removeprefix("> Assistant: ")) > 4 for line in said)


def test_what_metas_package_exports_is_exported_here() -> None:
    for name in ("Llama", "Dialog", "Message", "Role", "ModelArgs", "CompletionPrediction", "ChatPrediction"):
        assert name in llamachat.__all__ and getattr(llamachat, name).__module__ != "builtins"
    with pytest.raises(AttributeError, match="no attribute 'Transformer'"):
        _ = llamachat.Transformer
