"""A question on the command line: which words are one, and what a word means that is neither question nor command."""

import difflib
import os
import re
import shlex
from collections.abc import Collection, Sequence
from typing import Any

from llamachat.checks import shown
from llamachat.errors import ConfigError, UsageError

UNNAMED = "llamachat.unnamed"  # in a context's `meta`: `chat` was not typed
NEAR = 0.74  # of difflib: a letter wrong, missing or too many, or two changed round
INSTEAD = {  # what people know from ollama, and what there is here
    "serve": "there is no server to start: the chat runs the model itself, and --server URL asks one that runs",
    "push": "nothing is ever uploaded; a model is one file or folder, to be copied as such",
    "create": "a persona keeps a system prompt and settings (`/help persona` in a chat), models.toml keeps models",
    "cp": "an entry in your models.toml gives a model another name",
    "stop": "no model stays loaded: it goes with its chat",
    "ps": "no model stays loaded: it goes with its chat",
    "search": "`llamachat models search TEXT` asks the hub",
}
_MODEL = re.compile(r"(hf:|hf\.co/|https?://(hf|huggingface)\.co/|ollama:|server:)\S+|\S+\.gguf")
_NOTHING = "nothing was started"


def asked(ctx: Any, words: Sequence[str]) -> str | None:
    """The question among a chat's arguments, with what is on stdin behind it where that is no terminal; None: there is none.

    Raises UsageError for what can be meant otherwise.
    """
    if not words:
        return None
    if ctx.meta.get(UNNAMED):
        _check_no_command(words, ctx.find_root().command.commands)
    if len(words) > 1:
        cause = f"{shown(words[1])} is one argument too many"
        raise UsageError(cause, _NOTHING, f"put a question of several words in quotes: {_command(words)}")
    if not words[0].strip():
        raise UsageError("the question is empty", _NOTHING, "leave it out to type it in the chat")
    from llamachat.generation.prompts import read_prompt

    return read_prompt(words[0], None, "question")


def _check_no_command(words: Sequence[str], commands: Collection[str]) -> None:
    """Raises UsageError for a command behind flags, and for what `check_words` does not take for a question."""
    if words[0] in commands:
        cause, remedy = f"{words[0]} stands behind flags", f"write `llamachat {words[0]}` first, then flags"
        raise UsageError(cause, _NOTHING, f"{remedy}; {_as_question(words)}")
    check_words(words, commands)


def check_words(words: Sequence[str], commands: Collection[str]) -> None:
    """Raises UsageError for words of which the first is rather a command mistyped, a command of other programs, or a model than
    the beginning of a question."""
    word = words[0]
    if not word.strip() or re.search(r"\s", word):
        return
    if word in INSTEAD:
        raise UsageError(f"there is no command {word}", INSTEAD[word], _as_question(words))
    if near := _near(word[:40].lower(), commands):
        raise UsageError(f"there is no command {word}", _NOTHING, f"did you mean {near}? {_as_question(words)}")
    if _names_model(word):
        model = f"`llamachat -m {word}` chats with a model"
        raise UsageError(f"{word} alone is no question", _NOTHING, f"{model}; {_as_question(words)}")


def _near(word: str, commands: Collection[str]) -> str | None:
    """The command that was meant. Whoever mistypes one has its first letter right, or two changed round: "what" is not "chat"."""
    likely = [name for name in commands if name[0] == word[0] or sorted(name) == sorted(word)]
    return next(iter(difflib.get_close_matches(word, likely, n=1, cutoff=NEAR)), None)


def _names_model(word: str) -> bool:
    from llamachat.models.catalog import load_catalog

    if _MODEL.fullmatch(word) or ("/" in word and os.path.exists(os.path.expanduser(word))):  # noqa: PTH110, PTH111 (never raise)
        return True
    try:
        return bool(difflib.get_close_matches(word[:100].lower(), load_catalog().entries, n=1, cutoff=NEAR))
    except ConfigError:  # told of when a model is looked up in it
        return False


def _as_question(words: Sequence[str]) -> str:
    return f"{_command(words)} {'sends it' if len(words) == 1 else 'asks that'}"


def _command(words: Sequence[str]) -> str:
    """The command line that asks these words; one alone might be a command."""
    text = " ".join(words)
    quoted = shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'
    return f"`llamachat {'chat ' if len(words) == 1 else ''}{quoted}`"
