"""Drawings of what goes on inside: token probabilities, alternatives, the context window, the dialog's branches.

Each takes events' data and gives lines of at most `width` cells; nothing of it is trusted, and none needs colour.
"""

import math
from collections.abc import Sequence

from rich.text import Text

from llamachat.events import Branch, TokenView, Turn
from llamachat.system.enclosed import own_words
from llamachat.system.sanitise import Sanitiser, sanitise, sanitise_line
from llamachat.ui.cells import cells, count, cut, pad, wrap
from llamachat.ui.theme import Theme

_STEPS = (0.5, 0.2, 0.05, 0.01)  # probabilities between which the heat changes
_NAMES = ("≥ 50%", "20–50%", "5–20%", "1–5%", "< 1%")
_MARKS = (("", ""), ("", ""), ("", ""), ("‹", "›"), ("«", "»"))  # around unlikely tokens where there is no colour
_UNTEMPERED = "probabilities of the model's own distribution, before temperature and filters"
_TOLD = "probabilities as the server tells them"
_NARROW = 60  # columns, below which rows are written closer
_BRIEF = {"system": "sys", "user": "you", "assistant": "it"}
_SHOWN = 5  # least likely tokens named below a heat map; dropped turns listed one by one


def heat(tokens: Sequence[TokenView], width: int, theme: Theme) -> list[str]:
    """The answer with each token in the colour of its probability, a legend, and where the model was least sure."""
    if not tokens:
        return ["no tokens"]
    text, sanitiser = Text(), Sanitiser()
    for token in tokens:
        _append(text, sanitiser.feed(token.text), _level(token), theme)
    _append(text, sanitiser.finish(), _level(tokens[-1]), theme)
    text.expand_tabs(4)
    lines = [*wrap(text, width), Text(), *wrap(_legend(theme), width), *wrap(_summary(tokens, theme), width)]
    return [theme.ansi(line) for line in lines]


def _append(text: Text, shown: str, level: int, theme: Theme) -> None:
    if theme.plain and shown.strip():
        opening, closing = _MARKS[level]
        end = len(shown.rstrip())
        start = end - len(shown.strip())
        shown = shown[:start] + opening + shown[start:end] + closing + shown[end:]
    text.append(shown, theme.style(f"heat{level}"))


def _level(token: TokenView) -> int:
    return sum(math.exp(token.logprob) < step for step in _STEPS)


def _legend(theme: Theme) -> Text:
    legend = Text("each token by its probability: ")
    for level, name in enumerate(_NAMES):
        opening, closing = _MARKS[level] if theme.plain else ("", "")
        legend.append("  " if level else "").append(opening + name + closing, theme.style(f"heat{level}"))
    return legend


def _summary(tokens: Sequence[TokenView], theme: Theme) -> Text:
    order = sorted(range(len(tokens)), key=lambda index: tokens[index].logprob)[:_SHOWN]
    least = [f"{index + 1} {visible(tokens[index].text, 20)} {_percent(tokens[index].logprob)}" for index in order]
    mean = -sum(token.logprob for token in tokens) / len(tokens)
    line = f"{len(tokens)} tokens, perplexity {math.exp(min(mean, 99)):.2f}; least likely: {', '.join(least)}"
    return theme.text(line, "note")


def numbered(tokens: Sequence[TokenView], width: int, theme: Theme) -> list[str]:
    """The answer's tokens with their numbers, which `alternatives` goes by."""
    text = Text()
    for number, token in enumerate(tokens, 1):
        word = visible(token.text, 20).replace(" ", "\N{NO-BREAK SPACE}")
        text.append(f"{number}\N{NO-BREAK SPACE}", theme.style("note")).append(
            word, theme.style(f"heat{_level(token)}")
        )
        text.append("  ")
    return [theme.ansi(line) for line in wrap(text, width)] if tokens else ["no tokens"]


def alternatives(index: int, token: TokenView, width: int, theme: Theme) -> list[str]:
    """What else could have stood in a token's place (the `index`-th, from 1): rank, bar, probability, text."""
    own = token.id, token.text if token.id is None else ""
    found = [(id, text if id is None else "") == own for text, id, _ in token.top]
    rows = [(str(rank), text, logprob, found[rank - 1]) for rank, (text, _, logprob) in enumerate(token.top, 1)]
    if not any(found):
        rows.append(("…", token.text, token.logprob, True))
    bar = max(4, min(30, width - 40))
    lines = [Text.assemble(f"token {index}: ", (visible(token.text, width - 20), theme.style("strong")))]
    for rank, text, logprob, chosen in rows:
        share = min(1.0, math.exp(logprob))
        left = f"{rank:>3} {_bar(share, bar)} {_percent(logprob):>6}  "
        mark = " ← chosen" if chosen else ""
        shown = visible(text, width - cells(left) - cells(mark))
        lines.append(Text.assemble(left, (shown, theme.style("strong" if chosen else "")), (mark, theme.style("note"))))
    further = f"; /alts {index} K goes on from the K-th" if token.id is not None else ""
    lines += wrap(theme.text((_TOLD if token.id is None else _UNTEMPERED) + further, "note"), width)
    return [theme.ansi(_cropped(line, width)) for line in lines]


def context_map(turns: Sequence[Turn], used: int, size: int, width: int, theme: Theme) -> list[str]:
    """The window as a bar, then every message: pinned, kept, partly or no longer seen by the model."""
    pinned = min(used, sum(turn.tokens for turn in turns if turn.seen == "pinned"))
    lines = [
        _window(pinned, used, size, width, theme),
        *wrap(
            theme.text(f"█ pinned {pinned} · ▓ kept {used - pinned} · ░ free {size - used} · of {size} tokens", "note"),
            width,
        ),
        Text(),
        *(_drawn_row(row, width, theme) for row in _rows(turns)),
    ]
    return [theme.ansi(_cropped(line, width)) for line in lines]


def _window(pinned: int, used: int, size: int, width: int, theme: Theme) -> Text:
    room = min(width, 100)
    first = math.ceil(pinned * room / size) if pinned else 0
    filled = min(room, max(first, math.ceil(used * room / size)))
    styles = [theme.style(role) for role in ("pinned", "kept", "dropped")]
    return Text.assemble(
        ("█" * first, styles[0]), ("▓" * (filled - first), styles[1]), ("░" * (room - filled), styles[2])
    )


_Row = tuple[str, str, str, str, str]  # state, number, role, tokens, text


def _rows(turns: Sequence[Turn]) -> list[_Row]:
    """One for each message, but one for all that are long gone."""
    gone = [turn for turn in turns if turn.seen == "dropped"]
    folded = gone[:-_SHOWN]
    rows: list[_Row] = []
    if folded:
        numbers = f"{folded[0].number}–{folded[-1].number}"
        rows.append(("dropped", numbers, "", str(sum(turn.tokens for turn in folded)), f"{len(folded)} messages"))
    pinned, kept = ([turn for turn in turns if turn.seen in seen] for seen in (("pinned",), ("partly", "kept")))
    return [*map(_row, pinned), *rows, *map(_row, gone[len(folded) :]), *map(_row, kept)]


def _row(turn: Turn) -> _Row:
    return turn.seen, str(turn.number), turn.role, str(turn.tokens or "?"), own_words(turn.text)


def _drawn_row(row: _Row, width: int, theme: Theme) -> Text:
    state, number, role, tokens, text = row
    style = theme.style(state)
    narrow = width < _NARROW
    left = (
        f"{state:<7} {number:>3} {_BRIEF.get(role, role):<4} {tokens:>5} "
        if narrow
        else f"  {state:<7} {number:>5} {role:<9} {tokens:>7}  "
    )
    excerpt = cut(sanitise_line(text[: 4 * width]), width - len(left))
    return Text.assemble((left, style), (excerpt, theme.style("dropped" if state == "dropped" else "")))


def branch_tree(branches: Sequence[Branch], width: int, theme: Theme) -> list[str]:
    """Every branch in the order they began: which is active, where the others left it, their last questions and below each how
    its answer begins."""
    size = max((len(str(branch.id)) for branch in branches), default=0)
    lines = [line for branch in branches for line in _branch(branch, size, width, theme)]
    return [theme.ansi(_cropped(line, width)) for line in lines] or ["no branches"]


def _branch(branch: Branch, size: int, width: int, theme: Theme) -> list[Text]:
    """Its question right of what it is, or below that where there is little room."""
    fork = "active" if branch.active else f"forked after {branch.forked_at}"
    left = f"{'●' if branch.active else '○'} {branch.id:>{size}}  {count(branch.turns, 'turn')}, {fork}"
    wide = width >= 64
    indent = " " * (size + 32 if wide else size + 4)
    role = "kept" if branch.active else "note"
    head = theme.text(pad(left, len(indent)) if wide else left, role)
    room = width - len(indent)
    asked = Text(cut(sanitise_line(branch.last[: 4 * width]), room))
    answered = theme.text(cut(sanitise_line(branch.answer[: 4 * width]), room), "note")
    rows = [Text.assemble(head, asked)] if wide else [head, Text.assemble(indent, asked)]
    return [*rows, *([Text.assemble(indent, answered)] if branch.answer else [])]


def visible(text: str, width: int) -> str:
    """A token as a person can read it: in quotes, with its line breaks and tabs spelled out."""
    return cut("'" + sanitise(text).replace("\n", "⏎").replace("\t", "⇥") + "'", max(width, 3))


def _bar(share: float, width: int) -> str:
    """In eighths of a cell."""
    eighths = round(share * width * 8)
    full, part = divmod(eighths, 8)
    return pad("█" * full + " ▏▎▍▌▋▊▉"[part].strip(), width)


def _percent(logprob: float) -> str:
    share = 100 * math.exp(logprob)
    return f"{share:.1f}%" if share >= 0.1 else f"{share:.2f}%" if share >= 0.01 else "<0.01%"


def _cropped(text: Text, width: int) -> Text:
    return wrap(text, width)[0] if cells(text.plain) > width else text
