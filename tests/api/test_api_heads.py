"""Llama's classify, tag and extract: the commands' results in Python, and errors for what cannot be."""

from pathlib import Path
from typing import Any

import pytest
from headed import save_headed

from llamachat import Llama
from llamachat.errors import DoesNotFitError, UsageError

TEXT = "the quick brown fox jumps over the lazy dog"


def built(folder: Path, head: str, labels: list[str], **changes: Any) -> Llama:
    save_headed(folder, head, labels, **changes)
    return Llama.build(folder, max_batch_size=4)


def test_texts_and_pairs_are_classified(tmp_path: Path) -> None:
    llama = built(tmp_path, "sequence_labels", ["a", "b"])
    found = llama.classify([TEXT, (TEXT, "the dog"), TEXT])
    assert [{*each} for each in found] == [{"labels", "named"}] * 3
    assert found[0]["labels"][0] == pytest.approx(found[2]["labels"][0]) and found[0] != found[1]
    shares = [label["probability"] for label in found[0]["labels"]]
    assert sum(shares) == pytest.approx(1) and found[0]["named"] == [found[0]["labels"][0]["label"]]
    assert len(llama.classify([TEXT], top=1)[0]["labels"]) == 1 and llama.classify([]) == []
    with pytest.raises(DoesNotFitError, match="the context holds 256"):
        llama.classify(["quick " * 3000])
    assert llama.classify(["quick " * 3000], truncate=True)
    for wrong, said in (
        ({"texts": TEXT}, "not a list"),
        ({"texts": [3]}, "no text or pair"),
        ({"texts": None}, "None is not a list of texts"),
        ({"texts": {"a": "b"}}, "is not a list of texts"),
        ({"texts": ["a"], "top": 0}, "top is 0"),
    ):
        with pytest.raises(UsageError, match=said):
            llama.classify(**wrong)


def test_spans_are_tagged(tmp_path: Path) -> None:
    llama = built(tmp_path, "token_labels", ["X", "Y"])
    long = " ".join([TEXT] * 40)
    short, windowed = llama.tag([TEXT, long])
    assert short and all(span["text"] == TEXT[span["start"] : span["end"]] for span in short)
    assert all(span["text"] == long[span["start"] : span["end"]] for span in windowed) and windowed[-1]["end"] == len(
        long
    )
    with pytest.raises(UsageError, match="is no text"):
        llama.tag([("a", "b")])  # type: ignore[list-item]


def test_an_answer_is_extracted(tmp_path: Path) -> None:
    llama = built(tmp_path, "span", [])
    found = llama.extract("the fox", TEXT, top=3, null_threshold=None)
    assert found["answer"] == found["answers"][0] and len(found["answers"]) == 3
    assert found["answer"]["text"] == TEXT[found["answer"]["start"] : found["answer"]["end"]]
    assert llama.extract("the fox", TEXT, null_threshold=-1e9)["answer"] is None
    for wrong in ("x", float("nan"), True):
        with pytest.raises(UsageError, match=r"null_threshold is .*; allowed is a number"):
            llama.extract("the fox", TEXT, null_threshold=wrong)  # type: ignore[arg-type]
    with pytest.raises(DoesNotFitError, match=r"leaves 0 tokens of a window of 256; .*raise --ctx-size or lower"):
        llama.extract("the fox " * 300, TEXT)
    with pytest.raises(DoesNotFitError, match="a window of 32"):
        llama.extract("the fox", TEXT, window=32)


def test_another_head_is_refused_with_the_right_command(tmp_path: Path) -> None:
    llama = built(tmp_path, "token_labels", ["X", "Y"])
    for call in (lambda: llama.classify(["a"]), lambda: llama.extract("a", "b"), lambda: llama.text_completion(["a"])):
        with pytest.raises(UsageError, match="use llamachat tag"):
            call()
    with pytest.raises(UsageError, match="use llamachat tag"):
        llama.generate([[1, 2]])
