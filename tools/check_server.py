"""What a running server can do of all that `complete` and `chat` ask for, a line each.

    python tools/check_server.py http://127.0.0.1:8080 [--model NAME] [--key-env VAR] [--local MODEL [--engine torch]]

`--local`: a model of the same weights here, whose greedy texts the server's are compared with, word by word.
"""

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llamachat.core.dialog import Message
from llamachat.core.sampling import SamplingParams
from llamachat.errors import LlamachatError
from llamachat.generation.served import ServedCompleter
from llamachat.remote.asking import Address, Ended, Format, Piece, Question, TooLongError
from llamachat.remote.server import Server

GREEDY = SamplingParams(temperature=0)
SYSTEM = "You are a helpful assistant."
ASKED = (
    "What is the capital of France?", "Name three colours.", "How many legs has a spider?", "Write one line about rain.",
    "What is 2 + 2?", "Who wrote Hamlet?", "Say hello in Spanish.", "What do bees make?",
)  # fmt: skip
PLAIN = "The capital of France is"
SCHEMA = '{"type": "object", "properties": {"fruit": {"type": "string"}}, "required": ["fruit"]}'
Found = tuple[bool | None, str]  # whether it can; None: there is nothing to be seen; and what was seen


@dataclass
class Answered:
    """An answer that has ended, and when its pieces came."""

    pieces: list[Piece] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # seconds since it was asked for
    ended: Ended | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces if not piece.thinking)

    @property
    def tokens(self) -> list[Any]:
        return [token for piece in self.pieces for token in piece.tokens]


@dataclass
class Checked:
    """A server under examination."""

    server: Server
    local: str | None
    engine: str

    def ask(self, question: Question, stop_at: float = math.inf, within: float = math.inf) -> Answered:
        """`stop_at`: interrupt behind so many pieces; or when it is not done within so many seconds."""
        answer, start = Answered(), time.perf_counter()
        for each in self.server.ask(
            question, lambda: len(answer.pieces) >= stop_at or time.perf_counter() - start > within
        ):
            answer.times.append(time.perf_counter() - start)
            if isinstance(each, Ended):
                answer.ended = each
            else:
                answer.pieces.append(each)
        return answer

    def completer(self, settings: Question, raw: bool = False) -> ServedCompleter:
        return ServedCompleter(self.server, "m", settings, SYSTEM, raw, lambda: False, lambda line: None)


def dialog(text: str = ASKED[0], **more: Any) -> Question:
    messages = [Message("system", SYSTEM), Message("user", text)]
    return replace(Question(messages, sampling=GREEDY, max_tokens=24), **more)


def plain(**more: Any) -> Question:
    return replace(Question(text=PLAIN, sampling=GREEDY, max_tokens=8), **more)


def models(checked: Checked) -> Found:
    found = checked.server.models()
    told = [each.name.rpartition("/")[2] + (f" ({each.context} tokens)" if each.context else "") for each in found]
    return bool(found), ", ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "")


def streams(checked: Checked) -> Found:
    answer = checked.ask(dialog())
    return len(
        answer.pieces
    ) > 1, f"{len(answer.pieces)} pieces, the first after {answer.times[0]:.2f} s: {answer.text!r}"


def greedy_twice(checked: Checked) -> Found:
    first, second = (checked.ask(dialog()).text for _ in range(2))
    return first == second, "" if first == second else f"{first!r}, then {second!r}"


def seed(checked: Checked) -> Found:
    one, same, other = (
        checked.ask(dialog(ASKED[3], sampling=SamplingParams(temperature=1.5, top_p=1.0, seed=number))).text
        for number in (7, 7, 8)
    )
    return one == same and one != other, "" if one == same != other else f"{one!r}, {same!r}; of another seed {other!r}"


def stop(checked: Checked) -> Found:
    whole = checked.ask(dialog()).text
    mark = whole.split()[len(whole.split()) // 2]
    cut = checked.ask(dialog(stop=[mark]))
    good = cut.text == whole[: whole.index(mark)] and cut.ended is not None and cut.ended.reason == "stop"
    return good, f"before {mark!r}: {cut.text!r}"


def length(checked: Checked) -> Found:
    answer = checked.ask(dialog(max_tokens=3))
    assert answer.ended is not None
    return answer.ended.reason == "length", f"after 3 tokens: {answer.ended.reason}"


def usage(checked: Checked) -> Found:
    answer = checked.ask(dialog())
    assert answer.ended is not None
    counted = answer.ended.usage
    return counted is not None, f"{counted.prompt_tokens} and {counted.completion_tokens}" if counted else "tells none"


def logprobs(checked: Checked, question: Question | None = None) -> Found:
    answer = checked.ask(question or dialog(top_logprobs=3))
    tokens = answer.tokens
    if not tokens:
        return False, "none come"
    best = sum(bool(token.top) and token.top[0].text == token.text for token in tokens)
    whole = "".join(token.text for token in tokens).strip() == answer.text.strip()
    return whole and best == len(
        tokens
    ), f"{len(tokens)} tokens, of {best} it is the likeliest; ids: {tokens[0].id is not None}"


def raw(checked: Checked) -> Found:
    answer = checked.ask(plain())
    return bool(answer.text), f"{len(answer.pieces)} pieces: {answer.text!r}"


def raw_logprobs(checked: Checked) -> Found:
    return logprobs(checked, plain(top_logprobs=3))


def echo(checked: Checked) -> Found:
    answer = checked.ask(plain(echo=True, top_logprobs=1))
    assert answer.ended is not None
    text, scored = answer.text.startswith(PLAIN), len(answer.tokens) > 8
    return text and scored, f"{len(answer.tokens)} tokens; ignored: {', '.join(answer.ended.ignored) or 'nothing'}"


def schema(checked: Checked) -> Found:
    text = checked.ask(dialog("Name a fruit.", format=Format("schema", SCHEMA), max_tokens=60)).text
    try:
        return set(json.loads(text)) == {"fruit"}, repr(text)
    except (ValueError, TypeError):
        return False, repr(text)


def regex(checked: Checked) -> Found:
    text = checked.ask(dialog("Is Rome in Italy?", format=Format("regex", "yes|no"))).text
    return text in ("yes", "no"), repr(text)


def interrupt(checked: Checked) -> Found:
    """How long until it has ended, and until the next answer begins: a server that computes on is slow to begin."""
    long = dialog("Write a long story.", max_tokens=400)
    begun = checked.ask(replace(long, max_tokens=2)).times[0]
    answer = checked.ask(long, stop_at=2)
    assert answer.ended is not None
    took, start = answer.times[-1] - answer.times[-2], time.perf_counter()
    checked.ask(replace(long, max_tokens=2))
    again = time.perf_counter() - start
    return (
        answer.ended.reason == "interrupt" and took < 0.3,
        f"in {took:.2f} s; the next begins in {again:.2f} s, was {begun:.2f}",
    )


def too_long(checked: Checked) -> Found:
    try:
        answer = checked.ask(dialog("word " * 10_000, max_tokens=1), within=10)
    except TooLongError as error:
        return True, f"{error.prompt} tokens of {error.context}"
    except LlamachatError as error:
        return False, str(error)
    return None, f"it takes 10,000 words: {answer.text!r}"


def parallel(checked: Checked) -> Found:
    """Eight questions one after the other, and at once: the same answers, in less time."""
    lines = [json.dumps({"prompt": text}) for text in ASKED]
    run = checked.completer(Question(sampling=GREEDY, max_tokens=24))
    (alone, slow), (together, quick) = (_batch(run, lines, count) for count in (1, 8))
    same = sum(one == other for one, other in zip(alone, together, strict=True))
    return same == len(
        lines
    ), f"{same} of {len(lines)} answers are the same; {slow:.1f} s one by one, {quick:.1f} s at once"


def _batch(run: ServedCompleter, lines: Sequence[str], count: int) -> tuple[list[Any], float]:
    out, left, start = io.StringIO(), iter(lines), time.perf_counter()

    class Given:
        def take(self, wait: bool) -> str:
            return next(left, "")

    run.batch(Given(), out, count)
    results = [json.loads(line) for line in out.getvalue().splitlines()]
    return [result.get("text") for result in results], time.perf_counter() - start


def like_local(checked: Checked) -> Found:
    """Greedy texts of dialogs, and of a plain text, beside those of the same weights here."""
    if checked.local is None:
        return None, "give --local"
    pairs = [*_texts(checked, checked.local)]
    same = sum(one == other for one, other in pairs)
    part = next((f"; {one!r}, here {other!r}" for one, other in pairs if one != other), "")
    return same == len(pairs), f"{same} of {len(pairs)} texts{part}"


def _texts(checked: Checked, local: str) -> Iterator[tuple[str, str]]:
    from llamachat.generation.completer import Completer
    from llamachat.generation.completion import AnswerSettings
    from llamachat.models.load import load

    model = load(local, engine=checked.engine, ctx_size=512)
    for is_raw, texts in ((False, ASKED), (True, (PLAIN,))):
        stops = model.text_stop_ids if is_raw else model.stop_ids
        here = Completer(model, AnswerSettings(GREEDY, stops, max_tokens=24), SYSTEM, is_raw, False)
        there = checked.completer(Question(sampling=GREEDY, max_tokens=24), is_raw)
        for text in texts:
            yield there.result(there.dialog(text))["text"].strip(), here.result(here.dialog(text))["text"].strip()


CHECKS: Sequence[tuple[str, Callable[[Checked], Found]]] = [
    ("its models", models),
    ("a chat streams", streams),
    ("temperature 0: twice the same", greedy_twice),
    ("greedy texts are the local ones", like_local),
    ("a seed: twice the same", seed),
    ("a stop string", stop),
    ("the end by length is told", length),
    ("usage is told", usage),
    ("logprobs of a chat", logprobs),
    ("--raw", raw),
    ("logprobs of --raw", raw_logprobs),
    ("--echo with logprobs", echo),
    ("--schema", schema),
    ("--regex", regex),
    ("Ctrl-C ends it at once", interrupt),
    ("a text too long is told as one", too_long),
    ("--parallel 8", parallel),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model")
    parser.add_argument("--key-env")
    parser.add_argument("--local", help="a model of the same weights here")
    parser.add_argument("--engine", default="auto", help="which runs it")
    given = parser.parse_args()
    checked = Checked(Server(Address(given.url, given.model, given.key_env)), given.local, given.engine)
    for name, check in CHECKS:
        try:
            good, seen = check(checked)
        except LlamachatError as error:
            good, seen = False, str(error)
        print(f"{name:34}{ {True: 'yes', False: 'no', None: '-'}[good]:5}{seen[:200]}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
