"""`llamachat classify`, `tag` and `extract` as people and scripts use them, on tiny models with hostile labels."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from headed import save_headed
from test_cli import Run, compiled, run, tiny

import llamachat

__all__ = ["compiled", "run", "tiny"]  # fixtures
TEXT, HOSTILE = "the quick brown fox", "bad\x1b]0;owned\x07\x1b[31m\nlabel\u202e"
HEADS = {
    "single": ("sequence_labels", ["NEGATIVE", "POSITIVE", HOSTILE], {}),
    "several": ("sequence_labels", ["sports", HOSTILE], {"problem_type": "multi_label_classification"}),
    "number": ("sequence_labels", ["stars"], {"problem_type": "regression"}),
    "ranker": ("sequence_labels", ["relevant"], {}),
    "names": ("token_labels", ["O", f"B-{HOSTILE}", f"I-{HOSTILE}"], {}),
    "reader": ("span", [], {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("models")
    for name, (head, labels, changes) in HEADS.items():
        save_headed(home / name, head, labels, **changes)
    return {name: str(home / name) for name in HEADS}


def to_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is written to one of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


def test_a_text_is_labelled(run: Run, models: dict[str, str], tmp_path: Path) -> None:
    code, out, err = run("classify", TEXT, "-m", models["single"])
    rows = [line.split("\t") for line in out.splitlines()]
    assert (code, err, len(rows)) == (0, "", 3)
    told = json.loads(run("classify", TEXT, "-m", models["single"], "--json")[1])
    assert [f"{each['probability']:.4f}" for each in told["labels"]] == [share for _, share in rows]
    assert told["named"] == [told["labels"][0]["label"]] and told["usage"]["prompt_tokens"] > 3
    assert {each["label"] for each in told["labels"]} == {*HEADS["single"][1]}
    (tmp_path / "text").write_text(TEXT + "\n")
    assert run("classify", "-f", str(tmp_path / "text"), "-m", models["single"])[:2] == (0, out)
    assert run("classify", "-m", models["single"], stdin=TEXT)[:2] == (0, out)
    near = run("classify", TEXT, "-m", models["single"], "--engine", "torch", "--kv-bits", "32")[1]
    for line, (name, share) in zip(near.splitlines(), rows, strict=True):
        assert line.split("\t")[0] == name and float(line.split("\t")[1]) == pytest.approx(float(share), abs=2e-3)
    assert run("classify", TEXT, "-m", models["single"], "--top", "1")[1] == out.splitlines(keepends=True)[0]


@pytest.mark.parametrize("command", ["single", "several", "names"])
def test_labels_of_a_file_do_not_drive_the_terminal(
    command: str, run: Run, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to_terminal(monkeypatch)
    kind, more = ("tag", ()) if command == "names" else ("classify", ("--top", "3"))
    code, out, _ = run(kind, TEXT + " jumps over", "-m", models[command], *more)
    assert code == 0 and "bad label⟨U+202E⟩" in out and "\x1b]" not in out and "\x1b[31m" not in out
    assert "probability" in out and max(map(len, re.sub(r"\x1b\[[\d;]*m", "", out).splitlines())) <= 80


def test_of_several_labels_those_hold_that_are_likely_enough(run: Run, models: dict[str, str]) -> None:
    told = json.loads(run("classify", TEXT, "-m", models["several"], "--json")[1])
    shares = {each["label"]: each["probability"] for each in told["labels"]}
    assert {*told["named"]} == {name for name, share in shares.items() if share >= 0.5}
    code, out, err = run("classify", TEXT, "-m", models["several"], "--threshold", "1")
    assert (code, out) == (0, "") and err == "no label has a probability of 1; --top 3 shows the likeliest\n"
    assert len(run("classify", TEXT, "-m", models["several"], "--threshold", "0")[1].splitlines()) == 2


def test_a_number_is_given_as_it_is(run: Run, models: dict[str, str]) -> None:
    name, value = run("classify", TEXT, "-m", models["number"])[1].split("\t")
    (label,) = json.loads(run("classify", TEXT, "-m", models["number"], "--json")[1])["labels"]
    assert name == label["label"] == "stars" and float(value) == pytest.approx(label["value"], rel=1e-5)


@pytest.fixture
def documents(tmp_path: Path) -> str:
    (tmp_path / "documents.txt").write_text("the dog\n\nmany others look on while the lazy dog jumps " * 2 + "\nfox\n")
    return str(tmp_path / "documents.txt")


def test_documents_are_ranked_by_their_score(run: Run, models: dict[str, str], documents: str) -> None:
    code, out, _ = run("classify", "the quick", "-m", models["ranker"], "--documents", documents)
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and sorted(int(line) for _, line, _ in rows) == [1, 3, 5, 6]
    assert [share for share, *_ in rows] == sorted((share for share, *_ in rows), reverse=True)
    for share, _, text in rows:
        alone = run("classify", "the quick", "-m", models["ranker"], "--pair", text)[1]
        assert float(alone.split("\t")[1]) == pytest.approx(float(share), abs=2e-4)
    told = json.loads(
        run("classify", "the quick", "-m", models["ranker"], "--documents", documents, "--json", "--top", "2")[1]
    )
    assert [str(each["line"]) for each in told["ranking"]] == [line for _, line, _ in rows[:2]]
    alone = [["classify", "the quick", "-m", models["ranker"], "--pair", text, "--json"] for *_, text in rows]
    assert told["usage"]["prompt_tokens"] == sum(json.loads(run(*each)[1])["usage"]["prompt_tokens"] for each in alone)
    code, out, err = run("classify", "the quick", "-m", models["single"], "--documents", documents)
    assert code == 2 and err.endswith(
        "documents are ranked by one; nothing was ranked; give --label, such as 'NEGATIVE'\n"
    )
    assert run("classify", "x", "-m", models["single"], "--documents", documents, "--label", "POSITIVE")[0] == 0
    assert (
        "has no label 'x'" in run("classify", "x", "-m", models["single"], "--documents", documents, "--label", "x")[2]
    )


def test_documents_are_the_lines_that_other_programs_count(run: Run, models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "documents").write_bytes("a\u2028b\x0c\r\n\r\nc\n".encode())
    told = json.loads(
        run("classify", "x", "-m", models["ranker"], "--documents", str(tmp_path / "documents"), "--json")[1]
    )
    assert {each["line"]: each["text"] for each in told["ranking"]} == {1: "a\u2028b\x0c", 3: "c"}
    (tmp_path / "documents").write_text("a\n\n" + "quick " * 3000)
    code, _, err = run("classify", "x", "-m", models["ranker"], "--documents", str(tmp_path / "documents"))
    assert code == 4 and err.startswith("error: line 3 of the documents: the text makes")


def test_a_long_document_ends_where_the_line_does(
    run: Run, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_terminal(monkeypatch)
    (tmp_path / "long").write_text("the lazy dog " * 30 + "\nfox\n")
    out = run("classify", "x", "-m", models["ranker"], "--documents", str(tmp_path / "long"))[1]
    lines = re.sub(r"\x1b\[[\d;]*m", "", out).splitlines()
    assert len(lines) == 3 and lines[0].split() == ["score", "line", "document"] and "…" in "".join(lines)
    assert max(map(len, lines)) <= 80


def test_spans_and_answers_are_parts_of_the_text(run: Run, models: dict[str, str], documents: str) -> None:
    text = Path(documents).read_text().removesuffix("\n")
    spans = json.loads(run("tag", "-f", documents, "-m", models["names"], "--json")[1])["spans"]
    assert spans and all(span["text"] == text[span["start"] : span["end"]] for span in spans)
    assert {span["label"] for span in spans} == {HOSTILE}
    rows = [line.split("\t") for line in run("tag", "-f", documents, "-m", models["names"])[1].splitlines()]
    assert [(int(start), int(end.lstrip("~"))) for start, end, *_ in rows] == [(s["start"], s["end"]) for s in spans]
    asked = ("extract", "the dog", "-m", models["reader"], "--always", "--top", "2")
    told = json.loads(run(*asked, "-f", documents, "--json")[1])
    assert len(told["answers"]) == 2 and told["answers"][0] == told["answer"]
    assert told["answer"]["text"] == text[told["answer"]["start"] : told["answer"]["end"]]
    assert run(*asked, stdin=text)[1] == run(*asked, "-f", documents)[1]
    windows = json.loads(run(*asked, "-f", documents, "--json", "--window", "40", "--overlap", "8")[1])
    assert windows["usage"]["windows"] > 1
    code, out, err = run(*asked[:-3], "-f", documents, "--null-threshold", "-100")
    assert (code, out) == (0, "") and err.startswith("the text has no answer, as the model sees it; --always")


LINES = {
    "single": ("classify", '{"text": "a b"}', '{"text": "c", "pair": "d"}', "named"),
    "names": ("tag", '{"text": "a b"}', '{"text": "the fox"}', "spans"),
    "reader": ("extract", '{"question": "a", "text": "b c"}', '{"question": "d", "text": "e"}', "answers"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_batch_gives_a_line_for_each_and_is_gone_on_with(
    name: str, run: Run, models: dict[str, str], tmp_path: Path
) -> None:
    command, first, second, key = LINES[name]
    (tmp_path / "bad").write_text(f"{first}\n\n{{\n{second}\n")
    code, out, _ = run(command, "-m", models[name], "--jsonl", str(tmp_path / "bad"))
    results = [json.loads(line) for line in out.splitlines()]
    assert code == 2 and [key in each for each in results] == [True, False, True]
    assert results[1]["error"].startswith("line 3 is not JSON")
    (tmp_path / "in").write_text(f"{first}\n{second}\n")
    whole = (command, "-m", models[name], "--jsonl", str(tmp_path / "in"), "-o", str(tmp_path / "out"))
    assert run(*whole)[:2] == (0, "")
    written = (tmp_path / "out").read_text()
    assert [json.loads(line).keys() for line in written.splitlines()] == [results[0].keys()] * 2
    assert "exists; nothing was run; add --resume" in run(*whole)[2]
    (tmp_path / "out").write_text(written[:-9])
    assert run(*whole, "--resume")[0] == 0
    again = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [each.keys() for each in again] == [results[0].keys()] * 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("complete", "x", "-m", "single"), 2, "labels whole texts; it cannot do what is asked; use llamachat classify"),
        (("chat", "-m", "names"), 2, "has a head that labels tokens; it cannot do what is asked; use llamachat tag"),
        (("eval", "-m", "reader"), 2, "finds answers in a text; it cannot do what is asked; use llamachat extract"),
        (("bench", "-m", "single"), 2, "labels whole texts; it cannot do what is asked; use llamachat classify"),
        (("tag", "x", "-m", "single"), 2, "use llamachat classify"),
        (("classify", "x", "-m", "reader"), 2, "use llamachat extract"),
        (("extract", "x", "-m", "names"), 2, "there is no text; give it as an argument, with --file, or on stdin"),
        (("classify", "x", "-m", "TINY"), 2, "how a text goes on; it cannot do what is asked; use llamachat complete or chat"),
        (("classify", "x"), 2, "no model was named; nothing was read; give one with --model"),
        (("classify", "-m", "single"), 2, "there is no text; give it as an argument, with --file, or on stdin"),
        (("classify", "x", "-m", "single", "-f", "y"), 2, "a text and --file were both given; give one of them"),
        (("classify", "x", "-m", "single", "--pair", "y", "--documents", "z"), 2, "--pair and --documents were both given"),
        (("classify", "x", "-m", "single", "--jsonl", "y"), 2, "--jsonl brings its own texts"),
        (("classify", "x", "-m", "single", "--label", "y"), 2, "--label needs --documents"),
        (("classify", "quick " * 3000, "-m", "single"), 4, "tokens, the context holds 256; nothing was computed; shorten it"),
        (("tag", "-f", "/nowhere", "-m", "names"), 2, "/nowhere cannot be read: No such file or directory"),
        (("extract", "-m", "reader"), 2, "there is no question; give it as an argument, and the text with --file or on stdin"),
        (("extract", "", "-m", "reader", "-f", "y"), 2, "there is no question; give it as an argument"),
        (("classify", "", "-m", "single"), 2, "there is no text; give it as an argument, with --file, or on stdin"),
        (("classify", "-f", "EMPTY", "-m", "single"), 2, "empty is empty; nothing was read; give a text"),
        (("tag", "-f", "EMPTY", "-m", "names"), 2, "empty is empty; nothing was read; give a text"),
        (("extract", "x", "-f", "README.md", "-m", "reader", "--null-threshold", "nan"), 2, "null_threshold is nan; allowed is"),
        (("quantize", "single", "-o", "OUT", "--report"), 2, "this model predicts none; leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_line(
    arguments: tuple[str, ...], code: int, said: str, run: Run, models: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    files = {"OUT": str(tmp_path / "out"), "EMPTY": str(tmp_path / "empty")}
    given = [(models | files).get(each, each) for each in arguments]
    found, out, err = run(*given)
    assert (found, out) == (code, "") and said in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_what_is_too_long_is_cut_where_that_is_asked_for(run: Run, models: dict[str, str]) -> None:
    told = json.loads(run("classify", "quick " * 3000, "-m", models["single"], "--truncate", "--json")[1])
    assert told["usage"]["prompt_tokens"] == 256


def test_a_conversion_classifies_as_its_source_does(run: Run, models: dict[str, str], tmp_path: Path) -> None:
    assert run("quantize", models["single"], "-o", str(tmp_path / "small"), "--scheme", "int8")[0] == 0
    told, small = (
        json.loads(run("classify", TEXT, "-m", model, "--json")[1])["labels"]
        for model in (models["single"], str(tmp_path / "small"))
    )
    assert {each["label"]: each["probability"] for each in small} == pytest.approx(
        {each["label"]: each["probability"] for each in told}, abs=0.05
    )


def test_the_readmes_lines_run_as_they_are_written(models: dict[str, str], tmp_path: Path, run: Run) -> None:
    """Each in a shell, with folders in the places of their names."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (tmp_path / "documents.txt").write_text("The mill was built by Ada.\nIt rained in London.\n")
    block = next(part for part in readme.split("```\n") if "llamachat classify -m LABELS" in part)
    folders = {"LABELS": "single", "RANKER": "ranker", "NAMES": "names", "READER": "reader"}
    env = {**os.environ, "PYTHONPATH": str(Path(llamachat.__file__).parents[1])}
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 5
    for line in lines:
        command = re.sub(r"-m (\w+)", lambda found: f"-m {models[folders[found[1]]]}", line)
        command = re.sub(r"(^|\| )llamachat ", rf"\1{sys.executable} -m llamachat ", command)
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, (line, done.stderr)
