"""thinking.py: thoughts told from answers, however the text is cut."""

import pytest
from hash_engine import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from llamachat.chat.thinking import TAGS, ThinkSplitter, opened_by, spelled_tags, without_thinking


def split(pieces: list[str]) -> tuple[str, str]:
    """(what was thought, what was answered)"""
    splitter = ThinkSplitter()
    parts = [part for piece in pieces for part in splitter.add(piece)] + splitter.finish()
    assert all(text for text, _ in parts)
    thought, said = ("".join(text for text, is_thought in parts if is_thought is wanted) for wanted in (True, False))
    return thought, said


@pytest.mark.parametrize(("tag", "end"), TAGS.items())
def test_every_known_pair_of_tags_is_found_at_every_cut(tag: str, end: str) -> None:
    text = f"\n{tag}a < b, </ thin]{end}\n\nThe answer."
    for first in range(len(text) + 1):
        for second in (first, min(first + 3, len(text))):
            pieces = [text[:first], text[first:second], text[second:]]
            assert split(pieces) == ("a < b, </ thin]", "\n\nThe answer."), pieces


@given(st.text("<>/think abc", max_size=60), st.data())
def test_cutting_the_text_changes_nothing(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces) == split([text])


@given(st.text(max_size=80))
def test_without_tags_every_character_is_the_answers(text: str) -> None:
    assert split([text]) == ("", text) or any(tag in text for tag in TAGS)


def test_a_tag_in_the_middle_of_an_answer_is_what_it_talks_about() -> None:
    text = "Models write <think> and </think>."
    assert split([text]) == ("", text)


def test_a_thought_that_was_cut_short_is_one() -> None:
    assert split(["<think>so far", " </thi"]) == ("so far </thi", "")


def test_a_thought_that_a_header_opens_is_seen() -> None:
    assert opened_by("<|im_start|>assistant\n<think>\n") == "<think>"
    assert opened_by("<|im_start|>assistant\n") is None


def test_a_second_thought_right_behind_the_first_is_one() -> None:
    assert split(["<think>a</think> <think>b</think>c"])[1].strip() == "c"


def test_without_thinking_leaves_the_answer() -> None:
    assert without_thinking("<think>no</think>yes") == "yes" and without_thinking("plain") == "plain"


def test_tags_that_are_control_tokens_are_spelled_out() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.specials = {**tokenizer.specials, "[THINK]": 300}
    assert spelled_tags(tokenizer) == {300: b"[THINK]"}
