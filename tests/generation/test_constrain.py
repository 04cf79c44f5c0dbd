"""constrain.py: every finished answer is in the language, with every kind of tokenizer; nothing else is banned."""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from checkpoints import save_hf, save_tokenizer, tiny_model
from hash_engine import byte_tokenizer, hash_model
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.core.cache import Cache
from llamachat.core.detokenize import Detokenizer
from llamachat.core.sampling import SamplingParams
from llamachat.core.tokenizer import Tokenizer
from llamachat.engines.native import build
from llamachat.errors import ModelError, UsageError
from llamachat.generation.completer import Completer
from llamachat.generation.completion import Answer, AnswerSettings
from llamachat.generation.constraints import Constrainer, from_lark, from_regex, from_schema
from llamachat.generation.guesses import Guesses
from llamachat.models.load import load
from llamachat.tokenizers.meta import from_tiktoken
from llamachat.tokenizers.text_tokenizer import TextTokenizer

LONGEST = 200  # tokens


@pytest.fixture(scope="session")
def llama3(llama_models_dir: Path) -> Tokenizer:
    data = (llama_models_dir / "llama_models/llama3/tokenizer.model").read_bytes()
    return from_tiktoken(data, "tokenizer.model")


@pytest.fixture(scope="session")
def constrainers(smollm2: Tokenizer, spm: Tokenizer, llama3: Tokenizer) -> dict[str, tuple[Tokenizer, Constrainer]]:
    """Built once: that takes half a second for Llama 3's vocabulary."""
    tokenizers = {"bytes": byte_tokenizer(), "gguf": smollm2, "sentencepiece": spm, "tiktoken": llama3}
    return {
        # two ids more than the tokenizer has, as some checkpoints pad their embedding
        name: (each, Constrainer(each, each.vocab_size + 2, each.eos_ids, each.dummy_prefix))
        for name, each in tokenizers.items()
    }


def object_of(**properties: Any) -> dict[str, Any]:
    """The schema of an object with just these."""
    fixed = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **fixed}


KINDS = ("bytes", "gguf", "sentencepiece", "tiktoken")


def random_answer(tokenizer: Tokenizer, made: Constrainer, grammar: str, seed: int) -> str | None:
    """Text of tokens drawn from the allowed ones, each length as likely as others; None if it did not end in time."""
    constraint, random = made.of(grammar)(), np.random.default_rng(seed)
    text = Detokenizer(tokenizer)
    pieces = list[str]()
    for _ in range(LONGEST):
        allowed = np.flatnonzero(constraint.allowed())
        assert len(allowed)
        assert set(constraint.forced()[:1]) <= set(allowed.tolist())
        ends = [token for token in allowed.tolist() if token in tokenizer.eos_ids]
        if ends and (random.random() < 0.2 or len(ends) == len(allowed)):
            constraint.add(ends[0])
            return "".join(pieces) + text.finish()
        token = int(random.choice([t for t in allowed.tolist() if t not in ends]))
        assert tokenizer.token_bytes(token)
        constraint.add(token)
        pieces.append(text.add(token))
        if constraint.complete:
            return "".join(pieces) + text.finish()
    return None


def joined(parts: Sequence[str]) -> str:
    return "".join(parts)


regexes = st.recursive(
    st.sampled_from(["a", "b", " ", "é", "x y", "[a-c]", "[^a-z]", "[0-9]", ".", r"\.", "漢", "(?i:no)"]),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(joined)
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})")
        | st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{1,3}"])).map(lambda pair: f"({pair[0]}){pair[1]}")
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(regex=regexes, seed=st.integers(0, 99))
def test_a_finished_answer_matches_its_regex(
    constrainers: dict[str, tuple[Tokenizer, Constrainer]], kind: str, regex: str, seed: int
) -> None:
    text = random_answer(*constrainers[kind], from_regex(regex), seed)
    assert text is None or re.fullmatch(regex, text)


WRITTEN = st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cs"])  # SmolLM2 has no token for the byte F1


def test_what_a_tokenizer_cannot_write_is_an_error_that_says_so(
    constrainers: dict[str, tuple[Tokenizer, Constrainer]],
) -> None:
    with pytest.raises(ModelError, match="tokenizer cannot write what the grammar wants"):
        random_answer(*constrainers["gguf"], from_schema({"enum": ["\U00040000"]}), 0)


leaves: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.integers(-99, 99).map(lambda low: {"type": "integer", "minimum": low, "maximum": low + 123}),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.just({"type": "string", "pattern": "^[A-Z][a-z]{1,5}$"}),
    st.just({"type": "string", "format": "date"}),
    st.lists(st.text(WRITTEN, max_size=4) | st.integers(-(2**53), 2**53) | st.none(), min_size=1, max_size=3).map(
        lambda values: {"enum": values}
    ),
)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda items, n: {"type": "array", "items": items, "maxItems": n}, inner, st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=2).map(lambda each: {"anyOf": each}),
        st.builds(
            lambda properties, needed: {
                "type": "object",
                "properties": properties,
                "required": [name for name in properties if name in needed],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "name", "é", 'quo"te']), inner, max_size=3),
            st.sets(st.sampled_from(["a", "name", "é"])),
        ),
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(schema=schemas, seed=st.integers(0, 99))
def test_a_finished_answer_is_json_that_follows_its_schema(
    constrainers: dict[str, tuple[Tokenizer, Constrainer]], kind: str, schema: dict[str, Any], seed: int
) -> None:
    text = random_answer(*constrainers[kind], from_schema(schema), seed)
    if text is not None:
        jsonschema.validate(json.loads(text), schema)
        assert "\n" not in text


SPACED = [b" a", b" ab", b" ", b"a", b"b", b"ab", b"ba ", b"  a", b"", b"a b", b"a"]


def spaced_tokenizer(dummy_prefix: bool) -> TextTokenizer:
    """A few tokens, some with a space before, one twice, one empty; the last one ends a text."""
    return TextTokenizer(
        ids=lambda text, start: list(text.encode()),
        piece=lambda token: SPACED[token],
        vocab_size=len(SPACED) + 1,
        specials={"<end>": len(SPACED)},
        eos_ids=frozenset({len(SPACED)}),
        dummy_prefix=dummy_prefix,
    )


@given(words=st.sets(st.text("ab ", max_size=6), min_size=1, max_size=6), drops=st.booleans(), seed=st.integers(0, 999))
def test_allowed_is_exactly_what_some_word_of_the_language_goes_on_with(
    words: Collection[str], drops: bool, seed: int
) -> None:
    tokenizer, end = spaced_tokenizer(drops), len(SPACED)
    constraint = Constrainer(tokenizer, end + 1, {end}, drops).of(from_regex("|".join(words) if any(words) else "()"))()
    random, text = np.random.default_rng(seed), b""
    at_start = True
    while True:
        expected = {end} if text.decode() in words else set[int]()
        for token, data in enumerate(SPACED):
            added = data.removeprefix(b" ") if drops and at_start else data
            lone = data == b" " and not added  # which leaves the start of a text as it is
            if lone or (added and any(word.encode().startswith(text + added) for word in words)):
                expected.add(token)
        if constraint.complete:
            assert expected == {end}
            return
        allowed, forced = set(np.flatnonzero(constraint.allowed()).tolist()), constraint.forced()
        if drops and at_start:  # text that must come first is written in one way, or after a space
            assert allowed <= expected and {i for i in expected if i < end and SPACED[i].startswith(b" ")} <= allowed
        else:
            assert allowed == ({forced[0]} if forced else expected)
            assert allowed <= expected
        if not (going_on := sorted(expected - {end})):
            return
        token = int(random.choice(going_on))
        constraint.add(token)
        text += SPACED[token].removeprefix(b" ") if drops and at_start else SPACED[token]
        at_start = False


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_drafting_what_is_forced_changes_no_token(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = from_schema(object_of(a_long_name={"type": "boolean"}))
    results = []
    for forced in (True, False):
        model = hash_model()
        if not forced:
            monkeypatch.setattr(Answer, "drafter", lambda self: Guesses().begin(self.prompt))
        sampling = SamplingParams(temperature=temperature, seed=4, top_p=1)
        run = Completer(model, AnswerSettings(sampling, model.stop_ids), None, True, False, grammar=grammar)
        results.append((run.result("x"), model.engine.forwarded))  # type: ignore[attr-defined]
    (drafted, few), (plain, many) = results
    assert drafted["tokens"] == plain["tokens"] and drafted["finish_reason"] == "stop"
    assert json.loads(drafted["text"]).keys() == {"a_long_name"}
    assert len(few) < len(many)


def test_an_answer_that_is_cut_says_so() -> None:
    model = hash_model()
    settings = AnswerSettings(SamplingParams(temperature=0), model.stop_ids, max_tokens=3)
    run = Completer(model, settings, None, True, False, grammar=from_regex("abcdef"))
    assert (run.result("x")["text"], run.result("x")["finish_reason"]) == ("abc", "length")


def test_a_model_without_a_stop_token_ends_where_the_grammar_does() -> None:
    tokenizer = byte_tokenizer()
    made = Constrainer(tokenizer, tokenizer.vocab_size, (), drops_space=False).of(from_regex("ab?"))()
    made.add(97)
    assert not made.complete
    made.add(98)
    assert made.complete


@pytest.mark.parametrize(
    ("make", "text", "reason"),
    [
        (from_regex, "[a-", "the regular expression cannot be used: unclosed character class; nothing was generated"),
        (from_regex, "(?=a)b", "look-around"),
        (from_schema, "{", "the JSON schema cannot be used: Expecting property name"),
        (from_schema, "[" * 100_000, "nested too deeply"),
        (from_schema, "[1]", "it is not an object"),
        (from_schema, {"const": 2**53 + 1}, "9007199254740993 is too large"),
        (from_schema, {"const": float("inf")}, "Infinity"),
        (from_schema, '{"type": "objekt"}', "Invalid type: objekt"),
        (from_schema, '{"type": "integer", "minimum": 5, "maximum": 3}', "Unsatisfiable schema"),
        (from_schema, '{"not": {"type": "string"}}', "Unimplemented keys"),
        (from_lark, "start: other", 'unknown name: "other"'),
        (from_lark, "", "Empty grammar"),
    ],
)
def test_what_llguidance_refuses_is_a_usage_error_in_one_line_with_its_reason(
    make: Any, text: str, reason: str
) -> None:
    with pytest.raises(UsageError) as error:
        make(text)
    assert reason in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
def test_the_real_model_follows_a_schema_and_a_grammar(smollm2_gguf: Path) -> None:
    model = load(str(smollm2_gguf), ctx_size=256, engine="native")
    settings = AnswerSettings(SamplingParams(temperature=0), model.stop_ids, max_tokens=40)

    def answered(grammar: str, question: str) -> str:
        run = Completer(model, settings, None, False, False, grammar=grammar)
        result = run.result(run.dialog(question))
        assert result["finish_reason"] == "stop"
        return str(result["text"])

    schema = object_of(city={"enum": ["Paris", "Rome"]}, sea={"type": "boolean"})
    jsonschema.validate(json.loads(answered(from_schema(schema), "Which is France's capital?")), schema)
    assert answered(from_lark('start: "yes" | "no"'), "Is it?") in ("yes", "no")


def test_the_torch_engine_follows_a_schema_through_sentencepiece(tmp_path: Path) -> None:
    save_tokenizer(save_hf(tiny_model(), tmp_path))
    model = load(str(tmp_path), ctx_size=256, engine="torch")
    schema = object_of(city={"enum": ["Paris", "Rome"]}, sea={"type": "boolean"})
    settings = AnswerSettings(SamplingParams(seed=1), model.stop_ids, max_tokens=100)
    run = Completer(model, settings, None, True, False, grammar=from_schema(schema))
    jsonschema.validate(json.loads(run.result("the quick")["text"]), schema)


def test_a_context_too_small_for_the_answer_cuts_it() -> None:
    model = hash_model(8)
    settings = AnswerSettings(SamplingParams(temperature=0), model.stop_ids)
    run = Completer(model, settings, None, True, False, grammar=from_regex("a{30}"))
    answer = run.start("xxxx")
    assert "".join(answer) == "aaaaa" and answer.reason == "length" and isinstance(answer.cache, Cache)
