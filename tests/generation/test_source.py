"""Models that answer a source: what complete, batches and the Python API give is what transformers would give."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from t5_models import VOCAB_SIZE, save_t5, t5_logits, t5_model
from typer.testing import CliRunner

from llamachat import Llama
from llamachat.bench import runners
from llamachat.cli.main import app
from llamachat.core.cache import Cache
from llamachat.core.sampler import Sampler
from llamachat.core.sampling import SamplingParams
from llamachat.engines.select import ENGINES
from llamachat.engines.torch import encoder_decoder
from llamachat.errors import DoesNotFitError, UsageError
from llamachat.generation.batch import Answered, Batch, Request
from llamachat.generation.completer import Completer
from llamachat.generation.completion import Answer, AnswerSettings
from llamachat.generation.jsonl import Lines
from llamachat.models.load import LoadedModel, load

random = np.random.default_rng(1)
SOURCES = [[*(int(token) for token in random.integers(3, VOCAB_SIZE, size)), 1] for size in (40, 3, 200, 11, 1)]
PLAIN = {"do_sample": False, "use_cache": False}  # its cache has as many layers as the encoder
TEXTS = ["translate the house", "das Haus is small", "a", "the the the the"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(str(folder), dtype="float32", ctx_size=512, parallel=4)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return t5_model()


def reference(theirs: Any, source: list[int], params: SamplingParams, count: int) -> tuple[list[int], list[float]]:
    """Our sampler over transformers' logits, one token at a time: ids without </s>, and their logprobs."""
    sampler, ids, logprobs = Sampler(params, VOCAB_SIZE), [0], list[float]()
    sampler.observe_prompt(ids)
    for _ in range(count):
        with torch.no_grad():
            out = theirs(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([ids]))
        logits = out.logits[0, -1]
        token = sampler.sample(logits.numpy())
        if token == 1:
            break
        ids.append(token)
        logprobs.append(float(logits.log_softmax(-1)[token]))
    return ids[1:], logprobs


def test_greedy_answers_are_those_of_generate(model: LoadedModel, theirs: Any) -> None:
    llama = Llama(model)
    answers, logprobs = llama.generate(SOURCES, max_gen_len=24, temperature=0, logprobs=True)
    assert logprobs is not None and len({tuple(answer) for answer in answers}) == len(SOURCES), "sources matter"
    for source, answer, scores in zip(SOURCES, answers, logprobs, strict=True):
        made = theirs.generate(torch.tensor([source]), max_new_tokens=24, **PLAIN)[0, 1:].tolist()
        assert answer == made[: made.index(1) if 1 in made else None]
        assert llama.generate([source], max_gen_len=24, temperature=0)[0] == [answer], "alone"
        np.testing.assert_allclose(scores, reference(theirs, source, SamplingParams(temperature=0), 24)[1], atol=1e-4)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_sampled_answers_are_our_samplers_over_transformers_logits(
    model: LoadedModel, theirs: Any, penalty: float
) -> None:
    params = SamplingParams(temperature=1.3, top_p=0.9, seed=5, repetition_penalty=penalty)
    requests = [Request(source, AnswerSettings(params, {1}, max_tokens=20)) for source in SOURCES]
    outcomes = list(Batch(model, 3).run(iter(requests)))
    for source, outcome in zip(SOURCES, outcomes, strict=True):
        assert isinstance(outcome, Answered)
        alone = Answer(model.engine, model.tokenizer, Cache(512), source, AnswerSettings(params, {1}, max_tokens=20))
        assert "".join(alone) == outcome.text
        assert outcome.answer.ids == alone.ids == reference(theirs, source, params, 20)[0]


def test_a_repetition_penalty_counts_what_the_decoder_has_and_not_the_source(model: LoadedModel, theirs: Any) -> None:
    source = SOURCES[0]
    made = theirs.generate(torch.tensor([source]), max_new_tokens=16, repetition_penalty=1.8, **PLAIN)[0]
    settings = AnswerSettings(SamplingParams(temperature=0, repetition_penalty=1.8), {1}, max_tokens=16)
    answer = Answer(model.engine, model.tokenizer, Cache(512), source, settings)
    list(answer)
    assert [*answer.ids, *([1] if answer.stop_id else [])] == made[1:].tolist()


def test_a_source_may_be_longer_than_the_context_which_is_the_answers(model: LoadedModel, theirs: Any) -> None:
    source, cache = SOURCES[2], Cache(16)
    answer = Answer(model.engine, model.tokenizer, cache, source, AnswerSettings(SamplingParams(temperature=0), ()))
    assert "".join(answer) and answer.reason == "length"
    assert len(answer.ids) == cache.size < len(source)
    ids, made = [0], list[int]()
    for _ in range(16):
        made.append(int(t5_logits(theirs, source, ids + made)[-1].argmax()))
    assert answer.ids == made


def test_the_slots_of_a_batch_leave_no_source_behind(model: LoadedModel) -> None:
    engine = model.engine
    assert isinstance(engine, encoder_decoder.EncoderDecoderEngine)
    settings = AnswerSettings(SamplingParams(temperature=0), {1}, max_tokens=4)
    engine.sources.clear()
    outcomes = list(Batch(model, 2).run(Request(source, settings) for source in SOURCES))
    assert all(isinstance(outcome, Answered) for outcome in outcomes)
    assert not engine.sources


def test_a_batch_waits_for_memory_and_refuses_what_never_fits(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = model.engine
    assert isinstance(engine, encoder_decoder.EncoderDecoderEngine)
    room = 100
    monkeypatch.setattr(engine, "source_room", lambda: room - sum(len(s[0][0][0]) for s in engine.sources.values()))
    settings, most = AnswerSettings(SamplingParams(temperature=0), {1}, max_tokens=4), list[int]()
    engine.sources.clear()

    def watched() -> Iterator[Request]:
        for source in (SOURCES[0], SOURCES[2], SOURCES[0], SOURCES[0], SOURCES[3]):
            most.append(len(engine.sources))
            yield Request(source, settings)

    outcomes = list(Batch(model, 4).run(watched()))
    assert isinstance(outcomes[1], DoesNotFitError) and "there is room for" in str(outcomes[1])
    assert [isinstance(outcome, Answered) for outcome in outcomes] == [True, False, True, True, True]
    assert max(most) == 2, "three of 41 tokens are more than 100"


def test_an_interrupt_while_a_source_is_read_ends_the_answer(model: LoadedModel) -> None:
    settings = AnswerSettings(SamplingParams(temperature=0), {1}, max_tokens=4)
    answer = Answer(model.engine, model.tokenizer, Cache(64), SOURCES[0], settings, interrupted=lambda: True)
    assert (list(answer), answer.reason) == ([], "interrupt")


def test_a_text_without_room_is_refused_before_all_of_it_is_encoded(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.engine, "source_room", lambda: 10_000)
    with pytest.raises(
        DoesNotFitError, match=r"more than \d+ tokens, there is memory for 10000; .*; shorten the text$"
    ):
        model.encode_text("a b c d " * 100_000)


def test_the_python_api_answers_texts(model: LoadedModel) -> None:
    llama = Llama(model, max_batch_size=4)
    (one, *_), _ = llama.generate([model.encode_text(TEXTS[0])], max_gen_len=8, temperature=0)
    predictions = llama.text_completion(TEXTS, temperature=0, max_gen_len=8)
    assert predictions[0]["generation"] == llama.tokenizer.decode(one)
    with llama.text_stream(TEXTS[0], temperature=0, max_gen_len=8) as stream:
        assert "".join(stream) == predictions[0]["generation"]
    (scored,) = llama.text_completion(TEXTS[:1], temperature=0, max_gen_len=8, logprobs=True, echo=True)
    source = model.encode_text(TEXTS[0])
    assert scored["logprobs"][: len(source)] == [0.0] * len(source) and all(x < 0 for x in scored["logprobs"][-8:])
    for ask in (llama.chat_completion, llama.chat_stream):
        with pytest.raises(UsageError, match=r"answers a source text, it has no dialog; .*`llamachat complete`"):
            ask(
                [{"role": "user", "content": "a"}] if ask == llama.chat_stream else [[{"role": "user", "content": "a"}]]
            )


# The commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))

    monkeypatch.setenv("LLAMACHAT_ENGINE", "torch")  # so that the native one is not compiled

    def go(command: str, *arguments: str, stdin: str = "") -> Any:
        return CliRunner().invoke(app, [command, "-m", str(folder), *arguments], input=stdin)

    return go


def completer(model: LoadedModel, **changes: Any) -> Completer:
    settings = AnswerSettings(SamplingParams(temperature=0), model.text_stop_ids, max_tokens=8)
    return Completer(model, **{"settings": settings, "system": None, "raw": True, "echo": False} | changes)


def test_complete_needs_no_flag_and_counts_the_source(run: Callable[..., Any], model: LoadedModel) -> None:
    result = json.loads(run("complete", TEXTS[0], "--temp", "0", "-n", "8", "--json", "--dtype", "float32").stdout)
    expected = completer(model).result(TEXTS[0])
    assert result["text"] == expected["text"] and result["tokens"] == expected["tokens"]
    assert result["usage"] == {"prompt_tokens": len(model.encode_text(TEXTS[0])), "completion_tokens": 8}


def test_an_echo_is_the_source_a_space_and_the_answer(model: LoadedModel) -> None:
    settings = AnswerSettings(SamplingParams(temperature=0), {1}, max_tokens=8, top_logprobs=2, score_prompt=True)
    result = completer(model, settings=settings, echo=True).result(TEXTS[0])
    source, count = model.encode_text(TEXTS[0]), len(model.encode_text(TEXTS[0]))
    assert result["tokens"][:count] == source
    assert result["text"] == model.tokenizer.decode(result["tokens"])
    assert [entry["logprob"] for entry in result["logprobs"][:count]] == [None] * count
    assert all(len(entry["top"]) == 2 and entry["logprob"] <= 0 for entry in result["logprobs"][count:])


def test_a_batch_of_lines_is_answered_as_one_by_one(model: LoadedModel, tmp_path: Path) -> None:
    lines = [{"prompt": text} for text in TEXTS] + [{"messages": [{"role": "user", "content": "2+2?"}]}]
    (tmp_path / "lines").write_text("\n".join(map(json.dumps, lines)))
    out = io.StringIO()
    with (tmp_path / "lines").open("rb") as file:
        assert not completer(model).batch(Lines(file), out, 4)
    *results, refused = map(json.loads, out.getvalue().splitlines())
    for text, result in zip(TEXTS, results, strict=True):
        alone = completer(model).result(text)
        assert (result["text"], result["tokens"], result["usage"]) == (alone["text"], alone["tokens"], alone["usage"])
    said = 'answers a source text, it has no dialog; line 5 was skipped; write {"prompt": "..."}'
    assert refused["error"].endswith(said)


def test_answers_follow_a_grammar(run: Callable[..., Any]) -> None:
    assert run("complete", TEXTS[0], "--regex", "yes|no", "--seed", "3").stdout.strip() in ("yes", "no")
    schema = '{"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false}'
    answer = run("complete", TEXTS[0], "--schema", schema, "--seed", "3", "-n", "60").stdout
    assert json.loads(answer)["a"] in ("x", "y")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("complete", "a", "--system", "b"), "has no system prompt"),
        (("complete", "a", "--cache-prefix", "conf"), "reads a source as a whole"),
        (("chat",), "it cannot chat; ask it with `llamachat complete`"),
        (("eval", "--windows", "1"), "eval is not for it"),
        (("classify", "a"), "answers a source text; it cannot do what is asked; use llamachat complete"),
    ],
)
def test_what_makes_no_sense_ends_in_a_line(
    run: Callable[..., Any], arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").write_text("b")
    outcome = run(*arguments)
    assert isinstance(outcome.exception, UsageError | SystemExit)
    assert said in str(outcome.exception) + outcome.output


def test_a_bench_ends_in_a_line(folder: Path) -> None:
    with pytest.raises(UsageError, match="bench is not for it"):
        runners.ours(runners.Spec("llamachat", 1, 64, str(folder)), 0.0)


def test_the_native_engine_says_why_it_leaves_the_model_to_torch(model: LoadedModel) -> None:
    reason = ENGINES["native"].supports(model.checkpoint)
    assert reason == "it reads a source with an encoder"
