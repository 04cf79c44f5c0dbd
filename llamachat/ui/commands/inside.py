"""Commands that look inside: speed, context, the last answer's probabilities, the sampler's settings."""

from collections.abc import Iterator

from llamachat.errors import UsageError
from llamachat.events import Event, Stats, TokenView
from llamachat.ui.answer import duration
from llamachat.ui.cells import count
from llamachat.ui.commands.command import Command, Context
from llamachat.ui.commands.text import described, number
from llamachat.ui.render import percent, rate, unit


def _stats(context: Context, argument: str) -> None:
    chat = context.finished()
    last = chat.last_stats
    rows = [*described(chat).items(), *_used(chat.context_used, chat.context_size)]
    context.screen.table([*rows, *(_of_last(last) if last else ())])


def _used(used: int, size: int) -> Iterator[tuple[str, str]]:
    """How full the context is, as far as that is known."""
    if size:
        yield "used", f"{used} of {count(size, 'token')} ({percent(used, size)})"
    elif used:
        yield "used", f"{count(used, 'token')}; of how many is not known"


def _of_last(last: Stats) -> Iterator[tuple[str, str]]:
    """What the last answer took."""
    if last.counted:
        prompt = f"{count(last.prompt_tokens, 'token')}, {last.reused_tokens} of them already in the cache"
        yield "prompt", f"{prompt}; {last.prefill_s:.2f} s, {last.prefill_tok_s:.1f} tok/s"
    else:
        yield "prompt", f"nobody counted its tokens; {last.prefill_s:.2f} s to the first piece of the answer"
    if last.thought_tokens:
        yield "thought", f"{count(last.thought_tokens, unit(last))} of the answer's; {duration(last.thought_s)}"
    yield "answer", f"{count(last.completion_tokens, unit(last))}; {last.decode_s:.2f} s, {rate(last)}"


def _context(context: Context, argument: str) -> None:
    session = context.session()
    context.screen.context(session.context(), session.context_used, session.context_size)


def _tokens(context: Context) -> list[TokenView]:
    session = context.session()
    with context.screen.waiting("scoring the last answer …"):
        return list(session.tokens())


def _heat(context: Context, argument: str) -> None:
    context.screen.heat(_tokens(context))


def _alternatives(context: Context, argument: str) -> Iterator[Event] | None:
    words = argument.split()
    if not words:
        context.screen.numbered(_tokens(context))
        return None
    if len(words) > 2:
        raise UsageError("/alts takes the number of a token, and of its alternative", remedy="/alts numbers the tokens")
    index = number(words[0], "a token")
    if len(words) == 2:
        return context.session().take_alternative(index, number(words[1], "an alternative"))
    tokens = _tokens(context)
    if index > len(tokens):
        raise UsageError(f"the last answer has no token {index}", remedy=f"it has {count(len(tokens), 'token')}")
    context.screen.alternatives(index, tokens[index - 1])
    return None


def _thoughts(context: Context, argument: str) -> None:
    context.screen.thought(context.session().thought())


def _why(context: Context, argument: str) -> None:
    context.screen.why(context.session().why())


INSIDE = (
    Command(("stats",), "", "show what runs, how fast, how full the context is", _stats, at_once=True),
    Command(
        ("context",),
        "",
        "show what the model sees of the dialog",
        _context,
        "Pinned: never dropped. Kept: seen now. Partly: only its end is. Dropped: too long ago to be seen.",
    ),
    Command(
        ("heat",),
        "",
        "show how sure the model was of each token",
        _heat,
        "The last answer, by each token's probability before temperature and filters.",
    ),
    Command(
        ("alts",),
        "[N [K]]",
        "show token N's alternatives, or go on from the K-th",
        _alternatives,
        "Without N it numbers the tokens of the last answer. Going on from another makes a branch: see /branches.",
    ),
    Command(("thoughts",), "", "show what was thought before the last answer", _thoughts),
    Command(("why",), "", "show which settings shaped the last answer", _why),
)
