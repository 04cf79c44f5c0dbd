"""thinking.py: thoughts told from answers however the text is cut, and ended at their budget."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hash_engine import byte_tokenizer, hash_model
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from thinkers import CLOSE, END, OPEN, SIZE, thinking_model

from llamachat.core.cache import Cache
from llamachat.core.dialog import Message
from llamachat.core.sampling import SamplingParams
from llamachat.core.thoughts import TAGGED, Thoughts
from llamachat.families.gpt_oss import HARMONY
from llamachat.generation.batch import Answered, Batch, Request
from llamachat.generation.completer import Completer
from llamachat.generation.completion import Answer, AnswerSettings
from llamachat.generation.constraints import from_regex
from llamachat.generation.jsonl import Lines
from llamachat.generation.thinking import Tagger, Thinking, ThinkSplitter, spelled_marks, trimmed, unheard
from llamachat.models.load import LoadedModel

START, CHANNEL, FINAL = "<|start|>assistant", "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"


def split(pieces: list[str], thoughts: Thoughts = TAGGED) -> tuple[str, str]:
    """(what was thought, what was answered)"""
    splitter = ThinkSplitter(thoughts)
    parts = [part for piece in pieces for part in splitter.add(piece)] + splitter.finish()
    assert all(text for text, _ in parts)
    thought, said = ("".join(text for text, is_thought in parts if is_thought is wanted) for wanted in (True, False))
    return thought, said


@pytest.mark.parametrize(("tag", "end"), TAGGED.marks.items())
def test_every_known_pair_of_tags_is_found_at_every_cut(tag: str, end: str) -> None:
    text = f"\n{tag}a < b, </ thin]{end}\n\nThe answer."
    for first in range(len(text) + 1):
        for second in (first, min(first + 3, len(text))):
            pieces = [text[:first], text[first:second], text[second:]]
            assert split(pieces) == ("a < b, </ thin]", "\n\nThe answer."), pieces


marked = st.lists(
    st.sampled_from([*TAGGED.all[:2], *HARMONY.all, "<think", "<|", "|>", "<|end|>", " ", "\n", "a", "b c", "é"]),
    max_size=9,
).map("".join)


@given(marked, st.sampled_from([TAGGED, HARMONY]), st.data())
def test_cutting_the_text_changes_nothing(text: str, thoughts: Thoughts, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces, thoughts) == split([text], thoughts)
    tagger = Tagger(thoughts)
    kept = "".join(map(tagger.add, pieces)) + tagger.finish()
    if thoughts is TAGGED:
        assert kept == text and TAGGED.parted(text) == split([text])


@given(st.text(max_size=80))
def test_without_tags_every_character_is_the_answers(text: str) -> None:
    assert split([text]) == ("", text) or any(tag in text for tag in TAGGED.marks)


def test_a_tag_in_the_middle_of_an_answer_is_what_it_talks_about() -> None:
    text = "Models write <think> and </think>."
    assert split([text]) == ("", text)


def test_a_thought_that_was_cut_short_is_one() -> None:
    assert split(["<think>so far", " </thi"]) == ("so far </thi", "")


def test_a_thought_that_a_header_opens_is_seen_and_one_that_it_closes_too() -> None:
    assert TAGGED.opened_by("<|im_start|>assistant\n<think>\n") == "<think>"
    assert TAGGED.opened_by("<|im_start|>assistant\n") == TAGGED.opened_by("<think>\n\n</think>\n\n") == ""
    assert TAGGED.silenced_by("assistant\n<think>\n\n</think>\n\n") and not TAGGED.silenced_by("<think>\n")
    assert ThinkSplitter(TAGGED, "<think>").add("hm</think>yes") == [("hm", True), ("yes", False)]


def test_a_second_thought_right_behind_the_first_is_one() -> None:
    assert split(["<think>a</think> <think>b</think>c"]) == ("ab", "c")


def test_the_channels_of_harmony_are_thoughts_but_for_the_last() -> None:
    text = f"{CHANNEL}Let me.<|end|>{START}<|channel|>commentary<|message|>So.<|end|>{START}{FINAL}Yes <|end|>"
    assert split([text], HARMONY) == split([*text], HARMONY) == ("Let me.So.", "Yes <|end|>")
    assert split([f"{FINAL}Yes."], HARMONY) == ("", "Yes.")
    assert split([f"{CHANNEL}hm<|end|>{START}<|chan"], HARMONY) == ("hm", ""), "half a mark is nothing"
    tagger = Tagger(HARMONY)
    assert "".join(map(tagger.add, text)) + tagger.finish() == "<think>Let me.So.</think>Yes <|end|>"


def test_space_around_a_thought_is_left_out_and_none_else() -> None:
    parts = [("\n", True), ("\n hm", True), (" \n", True), ("\n\n", False), (" Yes", False), (" \n", False)]
    assert list(trimmed(parts)) == [("hm", True), (" \n", True), ("Yes", False), (" \n", False)]
    assert list(trimmed([("\n\n", True), ("\n\nYes", False)])) == [("Yes", False)]
    assert list(trimmed([(" a", False)])) == [(" a", False)]


def test_control_tokens_that_marks_are_made_of_are_spelled_out() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.specials = {**tokenizer.specials, "[THINK]": 300, "<|channel|>": 301, "<|end|>": 302}
    assert spelled_marks(tokenizer, TAGGED) == {300: b"[THINK]"}
    assert spelled_marks(tokenizer, HARMONY) == {301: b"<|channel|>", 302: b"<|end|>"}


# ---- the budget ----


def request(model: LoadedModel, budget: int | None, thinking: bool | None = None) -> Request:
    settings = AnswerSettings(SamplingParams(temperature=0), frozenset({END}), max_tokens=40, think_budget=budget)
    prompt = model.encode_dialog([Message("user", "q")], thinking)
    return Request(prompt, settings, thoughts=model.dialog.thoughts)


def alone(model: LoadedModel, budget: int | None) -> tuple[Answer, str, str]:
    answer = request(model, budget).answer(model, Cache(512))
    parts = list(answer.parts())
    return answer, "".join(t for t, thought in parts if thought), "".join(t for t, thought in parts if not thought)


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_at_its_budget_a_thought_is_closed_and_the_answer_begins(budget: int) -> None:
    model = thinking_model(OPEN, *b"hm, well, so ")
    answer, thought, said = alone(model, budget)
    assert thought == (f"{'hm, well, so '[:budget]}\n" if budget else "") and len(said) == 2
    assert answer.ids[: budget + 5] == [OPEN, *b"hm, well, so "[:budget], *b"\n", CLOSE, *b"\n\n"]
    assert answer.reason == "stop" and answer.cache.log == [*answer.prompt, *answer.ids], "a part of the sequence"


def test_without_a_budget_or_within_it_nothing_is_forced() -> None:
    model = thinking_model(OPEN, *b"hm", CLOSE, *b"Yes, I")
    free = alone(model, None)
    assert free[1:] == ("hm", "Yes,") and alone(model, 3)[0].ids == free[0].ids


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 30))
def test_no_thought_is_longer_than_its_budget_and_none_that_is_not_is_changed(
    long: int, budget: int, most: int
) -> None:
    model = thinking_model(OPEN, *(b"abcdefghijkl"[:long]), CLOSE, *b"Yes, I do.")
    free = request(model, None).answer(model, Cache(512))
    limited = request(model, budget).answer(model, Cache(512))
    for answer in (free, limited):
        answer.settings = replace(answer.settings, max_tokens=most)
        _ = list(answer)
    thought = 1 + min(long, budget)
    assert limited.ids[:thought] == free.ids[:thought] and len(limited.ids) <= most
    rest = limited.ids[thought:]
    closing = [*b"\n", CLOSE, *b"\n\n"]
    assert rest == free.ids[thought:] if long < budget else rest[: len(closing)] == closing[: len(rest)]


def test_a_thought_is_not_begun_again_once_the_budget_is_spent() -> None:
    model = thinking_model(OPEN, OPEN, OPEN)
    answer, *_ = alone(model, 0)
    assert answer.ids.count(OPEN) == 1 and answer.ids.count(CLOSE) == 1


def test_a_batch_ends_thoughts_as_each_answer_alone_would() -> None:
    model = thinking_model(OPEN, *b"hm, well, so ")
    budgets = [3, None, 0, 9]
    outcomes = list(Batch(model, 1).run(iter([request(model, budget) for budget in budgets])))
    for budget, outcome in zip(budgets, outcomes, strict=True):
        assert isinstance(outcome, Answered) and outcome.answer.ids == alone(model, budget)[0].ids


class Digits:
    """A constraint: a digit, and then the end."""

    complete = False

    def __init__(self) -> None:
        self.added = list[int]()

    def allowed(self) -> NDArray[np.bool_]:
        mask = np.zeros(SIZE, bool)
        mask[[END] if self.added else list(b"0123456789")] = True
        return mask

    def forced(self) -> list[int]:
        return [END] if self.added else []

    def add(self, token: int) -> None:
        self.added.append(token)


def test_what_an_answer_must_be_is_asked_of_it_once_the_thought_of_its_header_is_over() -> None:
    inner = Digits()
    guide = Thinking(thinking_model(0).tokenizer, SIZE, TAGGED, "<think>", 2, inner).begin()
    for token in b"ab":
        assert guide.allowed() is None and not guide.forced() and not guide.complete
        guide.add(token)
    assert guide.forced() == [*b"\n", CLOSE, *b"\n\n"]
    for token in [*b"\n", CLOSE, *b"\n\n"]:
        mask = guide.allowed()
        assert mask is not None and list(np.flatnonzero(mask)) == [token] and not inner.added
        guide.add(token)
    assert (guide.allowed() == inner.allowed()).all()
    guide.add(ord("7"))
    assert inner.added == [ord("7")] and guide.forced() == [END]


def test_an_answer_that_is_gone_on_with_has_had_the_tokens_that_it_has() -> None:
    model = thinking_model(OPEN, *b"hm, well, so ")
    whole = alone(model, 7)[0]
    for so_far in range(1, len(whole.ids)):
        begun = whole.ids[:so_far]
        settings = request(model, 7).settings
        prompt = [*whole.prompt, *begun]
        rest = Answer(model.engine, model.tokenizer, Cache(512), prompt, settings, begun=begun, thoughts=TAGGED)
        _ = list(rest)
        if so_far <= 8 or so_far >= 12:  # not in the midst of closing, which begins anew
            assert [*begun, *rest.ids] == whole.ids
        assert [*begun, *rest.ids].count(CLOSE) == 1


def test_a_model_without_a_switch_says_so_in_one_line() -> None:
    plain, qwen = hash_model().dialog, thinking_model(0).dialog
    assert plain.switch == "none" and qwen.switch == "full"
    for thinking in (True, False):
        assert (
            "no switch for thinking" in str(unheard("tiny", plain, thinking)) and unheard("q", qwen, thinking) is None
        )
    assert unheard("tiny", plain, None) is None


# ---- complete ----


def completer(model: LoadedModel, raw: bool = False, **settings: Any) -> Completer:
    settings = {"max_tokens": 40, **settings}
    made = AnswerSettings(SamplingParams(temperature=0), frozenset({END}), **settings)
    return Completer(model, made, None, raw, echo=False)


THINKS = (OPEN, *b"hm, well, so ", CLOSE, *b"\n\nYes")


def test_complete_gives_the_answer_alone_and_the_thought_where_it_is_asked_for() -> None:
    model = thinking_model(*THINKS)
    out, thoughts = StringIO(), StringIO()
    answer = completer(model).stream("q", out, thoughts)
    assert (out.getvalue(), thoughts.getvalue()) == ("Ye\n", "hm, well, so \n") and answer.reason == "stop"
    out = StringIO()
    completer(model).stream("q", out)
    assert out.getvalue() == "Ye\n"
    out, thoughts = StringIO(), StringIO()
    cut = completer(model, max_tokens=5).stream("q", out, thoughts)
    assert cut.all_thought and cut.reason == "length" and not answer.all_thought
    assert (out.getvalue(), thoughts.getvalue()) == ("\n", "hm, \n"), "a thought that is cut off ends its line too"


@pytest.mark.parametrize("stop", [",", "es", "\n", "<think>"])
def test_a_stop_string_ends_the_answer_and_not_the_thought_before_it(stop: str) -> None:
    model = thinking_model(OPEN, *b"hm, yes\n", CLOSE, *b"Yes,")
    found = completer(model, stop_strings=[stop]).result([Message("user", "q")])
    assert found["reasoning"] == "hm, yes" and found["text"] == {",": "Yes", "es": "Y"}.get(stop, "Yes,")


def test_json_has_a_thought_only_where_there_was_one() -> None:
    found = completer(thinking_model(*THINKS)).result([Message("user", "q")])
    assert (found["text"], found["reasoning"]) == ("Ye", "hm, well, so")
    assert list(found)[:4] == ["model", "text", "reasoning", "tokens"]
    assert found["tokens"] == [*THINKS[:-1]], "all of them"
    plain = completer(thinking_model(*b"<thinner", CLOSE, *b"Yes")).result([Message("user", "q")])
    assert "reasoning" not in plain and plain["text"] == "<thinner</think>Yes<"


def test_a_batch_of_lines_has_budgets_and_thoughts(tmp_path: Path) -> None:
    run, out = completer(thinking_model(*THINKS), think_budget=4), StringIO()
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"messages": [{"role": "user", "content": "b"}]}\n')
    with file.open("rb") as lines:
        assert run.batch(Lines(lines), out, 1)
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [each["reasoning"] for each in found] == ["hm,", "hm,"] and all(each["text"] for each in found)
    assert found[0]["tokens"] == alone(thinking_model(*THINKS), 4)[0].ids


def test_what_an_answer_must_be_leaves_the_thought_of_its_header_free() -> None:
    model = thinking_model(OPEN, *b"\nhm", CLOSE, *b"maybe, no")  # what it says at the header's places stays unsaid
    turns = model.dialog.layout
    model.dialog.layout = lambda messages: [*turns(messages)[:-1], [*turns(messages)[-1], "<think>\n"]]  # type: ignore[method-assign]
    run = replace(completer(model), grammar=from_regex("yes|no"))
    found = run.result([Message("user", "q")])
    assert found["text"] in ("yes", "no") and found["reasoning"]
    assert completer(model).result([Message("user", "q")])["reasoning"]


def test_what_ends_a_thought_ends_no_answer_whatever_the_metadata_say() -> None:
    model = hash_model()
    model.tokenizer = type(byte_tokenizer())(
        ids=lambda text, start: list(text.encode()),
        piece=lambda token: bytes([token]) if token < 256 else b"",
        vocab_size=261,
        specials={**model.tokenizer.specials, "<|end|>": 259, "<|return|>": 260},
        eos_ids=frozenset({259, 260}),
    )
    model.dialog = SimpleNamespace(stop_ids=frozenset({260}), thoughts=HARMONY)  # type: ignore[assignment]
    assert 260 in model.stop_ids and 259 not in model.stop_ids
    assert 259 in model.text_stop_ids, "a plain text ends there"
