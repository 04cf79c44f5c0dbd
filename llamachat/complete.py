"""`llamachat complete`: one prompt, or a JSONL file of them, to stdout; a filter that scripts can rely on."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

from llamachat.answer import Answer, AnswerSettings
from llamachat.batch import Answered, Batch, Request
from llamachat.cache import Cache
from llamachat.constrain import Constrainer, from_lark, from_regex, from_schema
from llamachat.dialog import Message
from llamachat.errors import LlamachatError, UsageError
from llamachat.generate import never
from llamachat.load import LoadedModel
from llamachat.sample import TokenLogprobs
from llamachat.ui.sanitise import Sanitiser

PARALLEL = 32  # requests at once, unless told otherwise


class Source(Protocol):
    """Where requests come from: see jsonl.Lines."""

    def take(self, wait: bool) -> str | None: ...


@dataclass(frozen=True)
class Completer:
    """A loaded model with all that stays the same from prompt to prompt."""

    model: LoadedModel
    settings: AnswerSettings
    system: str | None
    raw: bool
    echo: bool
    interrupted: Callable[[], bool] = never
    grammar: str | None = None  # of every answer: see constrain.py

    @cached_property
    def cache(self) -> Cache:
        """One for all prompts: what they begin with in common is computed once."""
        return Cache(self.model.context)

    def start(self, messages: list[Message] | str) -> Answer:
        """The answer to a dialog, or (raw) the continuation of a text; iterate it for the text."""
        request = self._request(messages, self.grammar)
        return self.model.answer(request.prompt, request.settings, self.cache, self.interrupted, request.continues_text)

    def ids(self, prompt: str) -> list[int]:
        """Of one prompt text, as the model is given it."""
        return self._encoded(self.dialog(prompt))

    def _encoded(self, messages: list[Message] | str) -> list[int]:
        return self.model.encode_text(messages) if isinstance(messages, str) else self.model.dialog.encode(messages)

    def _request(self, messages: list[Message] | str, grammar: str | None) -> Request:
        return Request(self._encoded(messages), self._constrained(grammar), isinstance(messages, str))

    def _constrained(self, grammar: str | None) -> AnswerSettings:
        if grammar is None:
            return self.settings
        if self.settings.stop_strings:
            raise UsageError("a stop string could cut an answer short of its grammar", remedy="leave --stop out")
        return replace(self.settings, constraint=self._constrainer.of(grammar))

    @cached_property
    def _constrainer(self) -> Constrainer:
        drops_space = self.model.tokenizer.dummy_prefix and not self.raw
        size = self.model.engine.config.vocab_size
        return Constrainer(self.model.tokenizer, size, self.settings.stop_ids, drops_space)

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
        return self._object(answer, "".join(answer))

    def _object(self, answer: Answer, text: str) -> dict[str, Any]:
        if self.echo:
            text = self.model.tokenizer.decode(answer.prompt) + text
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

    def batch(self, lines: Source, out: TextIO, parallel: int, skip: int = 0) -> bool:
        """One result a line for each line of JSON, in order; a bad line gives {"error": ...}. True when none was bad.

        parallel: requests to run at once. skip: requests that were answered before.
        """
        good = True
        batch = Batch(self.model, parallel, self.interrupted)
        for outcome in batch.run(self._requests(lines, batch, skip)):
            if isinstance(outcome, Answered):
                write_json(self._object(outcome.answer, outcome.text), out)
            else:
                good = False
                write_json({"error": str(outcome)}, out)
        return good

    def _requests(self, lines: Source, batch: Batch, skip: int) -> Iterator[Request | LlamachatError | None]:
        try:
            for number, line in _numbered(lines, batch):
                if line is None:
                    yield None
                elif skip:
                    skip -= 1
                else:
                    yield self._parsed(line, number)
        except LlamachatError as error:  # nothing can be read behind this; what was begun is still answered
            yield error

    def _parsed(self, line: str, number: int) -> Request | LlamachatError:
        try:
            return self._parse(line, number)
        except LlamachatError as error:
            return error

    def _parse(self, line: str, number: int) -> Request:
        """{"prompt": ...} or {"messages": ...}, and a "schema" if the answer must follow one."""
        try:
            request = json.loads(_utf8(line, f"line {number}"))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"line {number} is not JSON: {error}", "it was skipped") from error
        keys, grammar = set(request) if isinstance(request, dict) else set(), self.grammar
        if "schema" in keys:
            grammar = from_schema(request["schema"])
        keys.discard("schema")
        if keys == {"prompt"} and isinstance(request["prompt"], str):
            return self._request(self.dialog(request["prompt"]), grammar)
        if keys == {"messages"} and isinstance(request["messages"], list) and request["messages"] and not self.raw:
            messages = [Message.parse(message) for message in request["messages"]]
            return self._request(self._with_system(messages), grammar)
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


def _numbered(lines: Source, batch: Batch) -> Iterator[tuple[int, str | None]]:
    """The lines that are not blank, numbered from 1 with the others; None for one that has not come yet."""
    number = 0
    while (line := lines.take(batch.idle)) != "":
        number += line is not None
        if line is None or line.strip():
            yield number, line


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
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(newline="")  # as files are read: no line end is changed
        piped = _plain(sys.stdin.read(), "standard input")
        parts += [piped] if piped else []
    if not any(parts):
        raise UsageError("there is no prompt", remedy="give it as an argument, with --file, or on stdin")
    return "\n\n".join(parts)


def read_text(file: Path) -> str:
    """A user's text file: see _plain."""
    try:  # what is no UTF-8 comes as lone surrogates, for _utf8
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
            text = opened.read()
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return _plain(text, str(file))


def _plain(text: str, where: str) -> str:
    """A text, from wherever it comes: without a byte-order mark and the last line's end. All else stays, CRLF too."""
    text = _utf8(text, where).removeprefix("\ufeff")
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def read_grammar(schema: str | None, regex: str | None, grammar: str | None) -> str | None:
    """The grammar that --schema, --regex or --grammar asks for; schemas and grammars may be in files."""
    if sum(given is not None for given in (schema, regex, grammar)) > 1:
        raise UsageError("only one of --schema, --regex and --grammar can be followed", remedy="give one of them")
    if schema is not None:
        return from_schema(schema if schema.lstrip().startswith(("{", "[")) else read_text(Path(schema)))
    if grammar is not None:
        inline = re.search(r"^\s*start\s*:", grammar, re.MULTILINE)
        return from_lark(_utf8(grammar, "--grammar") if inline else read_text(Path(grammar)))
    return None if regex is None else from_regex(_utf8(regex, "--regex"))


def open_lines(file: Path) -> BinaryIO:
    """A file of requests; "-" is stdin."""
    try:
        return sys.stdin.buffer if str(file) == "-" else file.open("rb")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error


def _utf8(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where} is not UTF-8", "it was not sent", "convert it") from error
    return text
