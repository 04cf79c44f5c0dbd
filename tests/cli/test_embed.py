"""`llamachat embed` as people use it: one text, files of them, arrays, and models made for nothing else."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from checkpoints import save_hf, save_tokenizer, tiny_model
from test_cli import Run, compiled, run, tiny

__all__ = ["compiled", "run", "tiny"]  # fixtures
TEXTS = ["the quick", "brown fox jumps over", "the lazy dog"]


@pytest.fixture
def lines(tmp_path: Path) -> str:
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return str(tmp_path / "texts.jsonl")


def test_a_text_becomes_a_vector(run: Run, tmp_path: Path) -> None:
    code, out, err = run("embed", "the quick", "-m", "TINY")
    vector = json.loads(out)
    assert (code, err, len(vector)) == (0, "", 64) and abs(sum(x * x for x in vector) - 1) < 1e-5
    (tmp_path / "text").write_text("the quick\n")
    assert run("embed", "-f", str(tmp_path / "text"), "-m", "TINY") == (0, out, "")
    assert run("embed", "-m", "TINY", stdin="the quick") == (0, out, "")
    told = json.loads(run("embed", "the quick", "-m", "TINY", "--json", "--pool", "last")[1])
    assert told["pool"] == "last" and told["embedding"] != vector and told["usage"]["prompt_tokens"] > 1


def test_lines_become_lines_or_an_array(run: Run, lines: str, tmp_path: Path) -> None:
    alone = [json.loads(run("embed", text, "-m", "TINY")[1]) for text in TEXTS]
    code, out, err = run("embed", "--jsonl", lines, "-m", "TINY")
    assert (code, err) == (0, "")
    np.testing.assert_allclose([json.loads(line)["embedding"] for line in out.splitlines()], alone, atol=1e-4)
    array = tmp_path / "vectors.npy"
    code, out, err = run("embed", "--jsonl", lines, "-o", str(array), "-m", "TINY")
    assert (code, out, err) == (0, "", f"{array}: 3 vectors of 64 numbers\n")
    np.testing.assert_allclose(np.load(array), alone, atol=1e-4)
    assert run("embed", "--jsonl", lines, "-o", str(array), "-m", "TINY") == (
        2, "", f"error: {array} exists; nothing was run; remove it, or give another --output\n",
    )  # fmt: skip


def test_a_run_is_gone_on_with(run: Run, lines: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run("embed", "--jsonl", lines, "-o", str(out), "-m", "TINY")[0] == 0
    whole = out.read_text()
    out.write_text("".join(whole.splitlines(keepends=True)[:1]) + '{"model": "tor')
    assert run("embed", "--jsonl", lines, "-o", str(out), "--resume", "-m", "TINY")[0] == 0
    assert [json.loads(line)["embedding"][:2] for line in out.read_text().splitlines()] == [
        json.loads(line)["embedding"][:2] for line in whole.splitlines()
    ]


def test_a_bad_line_is_an_error_in_its_place_and_keeps_an_array_from_being_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "the quick"}\n{"txt": 1}\n{"text": "fox"}\n')
    code, out, _ = run("embed", "--jsonl", str(tmp_path / "bad.jsonl"), "-m", "TINY")
    assert code == 2 and ["error" in json.loads(line) for line in out.splitlines()] == [False, True, False]
    array = tmp_path / "vectors.npy"
    code, out, err = run("embed", "--jsonl", str(tmp_path / "bad.jsonl"), "-o", str(array), "-m", "TINY")
    said = "error: line 2 has no vector ({}); nothing was written; mend it or leave it out\n"
    assert (code, out, err) == (2, "", said.format("line 2 is no text to read")) and not array.exists()
    (tmp_path / "long.jsonl").write_text(f'{{"text": "fox"}}\n{{"text": "{"quick " * 9000}"}}\n')
    code, out, err = run("embed", "--jsonl", str(tmp_path / "long.jsonl"), "-o", str(array), "-m", "TINY")
    assert (code, out) == (4, "") and re.fullmatch(
        re.escape(said).replace(re.escape("{}"), r"the text makes \d+ tokens, the context holds 2048"), err
    )


def test_a_single_text_becomes_an_array_of_one_row(run: Run, tmp_path: Path) -> None:
    array = tmp_path / "vector.npy"
    given = ("embed", "the quick", "-m", "TINY", "-o", str(array))
    said = "--resume goes on with lines, an array is written whole; nothing was run; leave it out"
    assert run(*given, "--resume") == (2, "", f"error: {said}\n") and not array.exists()
    assert run(*given) == (0, "", f"{array}: 1 vector of 64 numbers\n") and np.load(array).shape == (1, 64)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a", "--jsonl", "x"), "--jsonl brings its own texts; give no other text"),
        (("a", "-o", "x"), "--output needs --jsonl; redirect one result with >"),
        (("--jsonl", "x", "--resume"), "--resume needs --output; name the file to go on with"),
        (("a", "-o", "nowhere/x.npy"), "nowhere/x.npy cannot be written: No such file or directory"),
        (
            ("quick " * 9000,),
            "the context holds 2048; nothing was computed; shorten it, cut it with --truncate or raise --ctx-size",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_line(arguments: tuple[str, ...], said: str, run: Run) -> None:
    code, out, err = run("embed", *arguments, "-m", "TINY")
    assert code in (2, 4) and out == "" and err.startswith("error: ") and err.endswith(f"{said}\n")


def bare(folder: Path) -> Path:
    """A model without a head, as transformers saves it: layers.0 for model.layers.0."""
    transformers.AutoModel.from_pretrained(save_hf(tiny_model(), folder / "whole")).save_pretrained(folder / "bare")
    save_tokenizer(folder / "bare")
    return folder / "bare"


def test_a_model_without_a_head_embeds_and_nothing_else(run: Run, tmp_path: Path) -> None:
    folder = str(bare(tmp_path))
    exact = ("embed", "the quick", "--pool", "last", "--kv-bits", "32", "-m")
    vector = json.loads(run(*exact, "TINY")[1])
    for engine in (("native",), ("torch", "--dtype", "float32")):
        code, out, err = run(*exact, folder, "--engine", *engine)
        assert (code, err) == (0, "")
        np.testing.assert_allclose(json.loads(out), vector, atol=1e-4)
    said = "has no head; it cannot do what is asked; use llamachat embed\n"
    assert run("complete", "the quick", "-m", folder) == (2, "", f"error: {folder} {said}")


def test_a_causal_model_that_was_saved_without_its_head_is_read(run: Run, tmp_path: Path) -> None:
    """As embedding models of that class are published: tied, and named as a class without a head is."""
    tied = save_hf(tiny_model(tie_word_embeddings=True), tmp_path / "tied")
    save_tokenizer(tied)
    config = (tied / "config.json").read_text()
    transformers.AutoModel.from_pretrained(tied).save_pretrained(tmp_path / "bare")
    save_tokenizer(tmp_path / "bare")
    (tmp_path / "bare/config.json").write_text(config)
    same = "complete", "the quick", "-n", "5", "--temp", "0", "--raw", "-m"
    assert run(*same, str(tmp_path / "bare"))[1] == run(*same, str(tied))[1]
    with torch.no_grad():
        assert json.loads(run("embed", "the quick", "-m", str(tmp_path / "bare"))[1])


def test_it_is_converted_too(run: Run, tmp_path: Path) -> None:
    folder, out = str(bare(tmp_path)), str(tmp_path / "int8")
    assert run("quantize", folder, "-o", out, "--scheme", "int8")[0] == 0
    right, ours = (json.loads(run("embed", "the quick", "-m", path)[1]) for path in (folder, out))
    assert np.dot(right, ours) > 0.99
