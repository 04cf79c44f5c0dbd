"""titles.py: what stands for a dialog in a list, and as the name of its file."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.chat.store import check_name
from llamachat.chat.titles import slug, title
from llamachat.system.enclosed import parted
from llamachat.ui.attach import read, to_message


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("What is the capital of France?", "what-is-the-capital-of-france"),
        ("What's  up -- Doc?!", "whats-up-doc"),
        ("Write a function that computes all primes", "write-a-function-that-computes"),
        ("x" * 100, "x" * 32),
        ("Über uns: 2 Städte", "über-uns-2-städte"),
        ("हिन्दी में", "हिन्दी-में"),
        ("数学について教えてください。数学とは", "数学について教えてください-数学とは"),
        ("../../etc/passwd", "etc-passwd"),
        ("???", ""),
        ("\x1b[31m", "31m"),
    ],
)
def test_a_name_is_made_of_the_first_words(question: str, name: str) -> None:
    assert slug(title(question)) == name


@settings(max_examples=30)
@given(st.text(max_size=60))
def test_whatever_is_asked_makes_a_harmless_name_with_room_for_a_number(question: str) -> None:
    if name := slug(title(question)):
        check_name(name + "-99999")


def test_an_attached_file_is_told_from_the_persons_own_words(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# one\n```\ncode\n```\nlast\n")
    (tmp_path / "b.py").write_text("pass\n")
    files = [read(tmp_path / name) for name in ("notes.md", "b.py")]
    sent = to_message("Compare them:\n```\nmine\n```", files)
    assert parted(sent) == ("Compare them:\n```\nmine\n```", ("notes.md (5 lines)", "b.py (1 line)"))
    assert title(sent) == "Compare them:" and title(to_message("", files)) == "notes.md (5 lines)"
    moved = "Well?\n\n" + to_message("", files)  # as it was in older dialogs
    assert parted(moved)[0] == "Well?" and title(moved) == "Well?"


def test_a_fence_that_never_closes_is_the_persons_own() -> None:
    text = "a.md:\n```\nno end"
    assert parted(text) == (text, ())
    many = "a.md:\n" + "\n".join("`" * size + "\na.md:" for size in range(3, 2000))
    assert parted(many)[1] == ()


def test_many_files_are_parted_in_time_that_grows_with_them() -> None:
    begin = time.process_time()
    assert len(parted("a.md:\n```\n```\n" * 60_000)[1]) == 60_000
    assert time.process_time() - begin < 2
