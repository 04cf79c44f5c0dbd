"""`llamachat complete`: one prompt, or a JSONL file of them, to stdout; a filter that scripts can rely on."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from llamachat.answer import Answer, AnswerSettings
from llamachat.cache import Cache
from llamachat.dialog import Message
from llamachat.errors import LlamachatError, UsageError
from llamachat.generate import never
from llamachat.load import LoadedModel
from llamachat.sample import TokenLogprobs
from llamachat.ui.sanitise import Sanitiser


@dataclass(frozen=True)
class Completer:
    """A loaded model with all that stays the same from prompt to prompt."""

    model: LoadedModel
    settings: AnswerSettings
    system: str | None
    raw: bool
    echo: bool
    interrupted: Callable[[], bool] = never

    @cached_property
    def cache(self) -> Cache:
        """One for all prompts: what they begin with in common is computed once."""
        return Cache(self.model.engine.slots)

    def start(self, messages: list[Message] | str) -> Answer:
        """The answer to a dialog, or (raw) the continuation of a text; iterate it for the text."""
        raw = isinstance(messages, str)
        prompt = self.model.encode_text(messages) if isinstance(messages, str) else self.model.dialog.encode(messages)
        return self.model.answer(prompt, self.settings, self.cache, self.interrupted, continues_text=raw)

    def dialog(self, prompt: str) -> list[Message] | str:
        """What the model is given for one prompt text: the text itself (raw), or a dialog with it."""
        return prompt if self.raw else self._with_system([Message("user", prompt)])

    def _with_system(self, messages: list[Message]) -> list[Message]:
        """The system prompt goes before a dialog that has none of its own."""
        if not self.system or (messages and messages[0].role == "system"):
            return messages
        return [Message("system", self.system), *messages]

    def stream(self, prompt: str, out: TextIO) -> Answer:
        """Write the text as it comes (sanitised if `out` is a terminal), and a newline."""
        answer = self.start(self.dialog(prompt))
        sanitiser = Sanitiser() if out.isatty() else None
        for piece in self._text(answer):
            out.write(sanitiser.feed(piece) if sanitiser else piece)
            out.flush()
        out.write((sanitiser.finish() if sanitiser else "") + "\n")
        out.flush()
        return answer

    def result(self, messages: list[Message] | str) -> dict[str, Any]:
        """The JSON object of the CLI contract for one prompt."""
        answer = self.start(messages)
        text = "".join(self._text(answer))
        stats = answer.stats()
        result = {
            "model": self.model.name,
            "text": text,
            "tokens": [*answer.prompt, *answer.ids] if self.echo else answer.ids,
            "finish_reason": answer.reason,
            "usage": {"prompt_tokens": stats.prompt_tokens, "completion_tokens": stats.completion_tokens},
            "timings": {
                "load_s": round(self.model.load_s, 4),
                "prefill_s": round(stats.prefill_s, 4),
                "decode_s": round(stats.decode_s, 4),
                "prefill_tok_s": round(stats.prefill_tok_s, 2),
                "decode_tok_s": round(stats.decode_tok_s, 2),
            },
        }
        if self.settings.top_logprobs is not None:
            result["logprobs"] = self._logprobs(answer)
        return result

    def batch(self, lines: Iterable[str], out: TextIO) -> bool:
        """One result a line for each line of JSON, in order; a bad line gives {"error": ...}. True when none was bad."""
        good = True
        for number, line in enumerate(lines, 1):
            if self.interrupted():
                break
            if not line.strip():
                continue
            try:
                result = self.result(self._parse(line, number))
            except LlamachatError as error:
                result, good = {"error": str(error)}, False
            write_json(result, out)
        return good

    def _parse(self, line: str, number: int) -> list[Message] | str:
        try:
            request = json.loads(_utf8(line, f"line {number}"))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"line {number} is not JSON: {error}", "it was skipped") from error
        keys = set(request) if isinstance(request, dict) else set()
        if keys == {"prompt"} and isinstance(request["prompt"], str):
            return self.dialog(request["prompt"])
        if keys == {"messages"} and isinstance(request["messages"], list) and request["messages"] and not self.raw:
            return self._with_system([Message.parse(message) for message in request["messages"]])
        expected = '{"prompt": "..."}' + ("" if self.raw else ' or {"messages": [{"role": ..., "content": ...}]}')
        raise UsageError(f"line {number} is not a request", "it was skipped", f"write {expected}")

    def _text(self, answer: Answer) -> Iterator[str]:
        if self.echo:
            yield self.model.tokenizer.decode(answer.prompt)
        yield from answer

    def _logprobs(self, answer: Answer) -> list[dict[str, Any]]:
        if not self.echo:
            return [self._entry(entry) for entry in answer.logprobs]
        first = {**self._token(answer.prompt[0]), "logprob": None, "top": []}  # nothing precedes it
        return [first, *(self._entry(entry) for entry in [*answer.prompt_logprobs, *answer.logprobs])]

    def _entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        top = [{**self._token(token), "logprob": logprob} for token, logprob in entry.top]
        return {**self._token(entry.id), "logprob": entry.logprob, "top": top}

    def _token(self, token: int) -> dict[str, Any]:
        return {"id": token, "token": self.model.token_text(token)}


def write_json(value: dict[str, Any], out: TextIO) -> None:
    """One line; in ASCII where its characters could act (a terminal) or would be lost (an encoding that lacks them)."""
    ascii_only = out.isatty() or (out.encoding or "utf-8").lower() != "utf-8"
    out.write(json.dumps(value, ensure_ascii=ascii_only) + "\n")
    out.flush()


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt: the argument or the file's text, followed by stdin's where stdin is not a terminal."""
    if argument is not None and file is not None:
        raise UsageError("a prompt and --file were both given", remedy="give one of them")
    given = argument if file is None else read_text(file)
    parts = [given] if given is not None else []
    if not sys.stdin.isatty():
        piped = _utf8(sys.stdin.read(), "standard input").removesuffix("\n")
        parts += [piped] if piped else []
    if not any(parts):
        raise UsageError("there is no prompt", remedy="give it as an argument, with --file, or on stdin")
    return "\n\n".join(parts)


def read_text(file: Path) -> str:
    """A user's text file, without its last newline."""
    with _open(file) as text:
        return _utf8(text.read(), str(file)).removesuffix("\n")


def open_lines(file: Path) -> TextIO:
    """A file for `Completer.batch`; "-" is stdin."""
    return sys.stdin if str(file) == "-" else _open(file)


def _open(file: Path) -> TextIO:
    """A text file, with or without a byte-order mark; what is no UTF-8 in it comes as lone surrogates, for _utf8."""
    try:
        return file.open(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error


def _utf8(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where} is not UTF-8", "it was not sent", "convert it") from error
    return text
