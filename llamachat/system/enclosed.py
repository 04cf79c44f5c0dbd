"""Texts that go with a message: each before it, by name, in a code fence that nothing in it can close."""

import re

_ENCLOSED = re.compile(r"[^\n]*:\n(?P<fence>`{3,})\n(?:.*?\n)?(?P=fence)(?:\n\n|\Z)", re.DOTALL)


def enclosed(name: str, text: str) -> str:
    """A text as it goes before a message. `name` is one line."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{name}:\n{fence}\n{text.removesuffix(chr(10))}\n{fence}"


def own_words(message: str) -> str:
    """What a person said themselves: the message without the texts before it; all of it where there is nothing else."""
    start = 0
    while found := _ENCLOSED.match(message, start):
        start = found.end()
    return message[start:] or message
