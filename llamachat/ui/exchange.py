"""A question and its answer as they were shown, for whoever looks back at them."""

import sys

from rich.text import Text

from llamachat.events import Exchange, TextDelta
from llamachat.system.sanitise import sanitise, sanitise_line
from llamachat.ui.answer import Answer, Kind, Sheet
from llamachat.ui.cells import count, cut, wrap
from llamachat.ui.theme import Theme

ECHOED = 12  # lines of a long question that are repeated above its answer
LAST = 20  # lines of a long answer that are shown where a dialog goes on
_BOUND = 200_000  # characters of which these are the last


def asked_lines(text: str, theme: Theme, width: int, sign: str) -> list[str]:
    """A question behind the prompt's sign; of a long one the beginning."""
    lines = sanitise(text).expandtabs(4).split("\n")
    if len(lines) > ECHOED:
        lines = [*lines[: ECHOED - 1], f"… {len(lines) - ECHOED + 1} more lines"]
    mark, drawn = theme.text(sign, "key"), list[str]()
    for line in lines:
        for part in wrap(Text(line), max(8, width - len(sign))):
            drawn.append(theme.ansi(Text.assemble(mark, part)))
            mark = Text(" " * len(sign))
    return drawn


def exchange_lines(
    exchange: Exchange, theme: Theme, width: int, kind: Kind, sign: str, *, think: bool, whole: bool, ending: str
) -> list[str]:
    """Question, answer and how that ended where it did not by itself. `think`: what was thought is shown, else only that it
    was. Unless `whole`, a long answer is its last lines."""
    beside = [f"+ {name}" for name in exchange.attached]
    if exchange.thought and not think:
        beside.append(f"thought first · {count(len(exchange.thought.split()), 'word')}")
    said = exchange.answer.strip("\n")
    lines = _answer_lines(exchange.thought if think else "", said if whole else said[-_BOUND:], theme, width, kind)
    left_out = 0 if whole else max(0, len(lines) - LAST)
    more = [_left_out(left_out, width)] if left_out else []
    return [
        *asked_lines(exchange.question, theme, width, sign),
        *(theme.ansi(theme.text(cut(sanitise_line(line), width), "note")) for line in [*beside, *more]),
        *lines[left_out:],
        *(theme.ansi(line) for line in (wrap(theme.text(ending, "note"), width) if ending else ())),
    ]


def _left_out(lines: int, width: int) -> str:
    told = f"… {count(lines, 'more line')}"
    remedy = "; /history shows all"
    return told + remedy if len(told + remedy) <= width else told


def _answer_lines(thought: str, said: str, theme: Theme, width: int, kind: Kind) -> list[str]:
    out = list[str]()
    answer = Answer(Sheet(theme, lambda: width, out.append, out.append, kind, told=False), think=True)
    for delta in ([TextDelta(thought, thinking=True)] if thought else []) + [TextDelta(said)]:
        answer.feed(delta)
    answer.finish()
    return "".join(out).split("\n")[:-1]


def sign() -> str:
    """What stands before a typed text."""
    try:
        "❯".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return "> "
    return "❯ "
