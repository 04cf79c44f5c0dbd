"""`llamachat complete`: one prompt, or a JSONL file of them, to stdout; a filter that scripts can rely on."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from llamachat.core.cache import Cache
from llamachat.core.dialog import Message
from llamachat.core.generate import never
from llamachat.core.sampler import TokenLogprobs
from llamachat.errors import DoesNotFitError, LlamachatError, UsageError, reason
from llamachat.generation.batch import Answered, Batch, Request
from llamachat.generation.completion import Answer, AnswerSettings
from llamachat.generation.constraints import Constrainer, from_lark, from_regex, from_schema
from llamachat.generation.jsonl import Source, numbered, parse_line, utf8
from llamachat.generation.thinking import Part, parted
from llamachat.models.load import LoadedModel
from llamachat.system import textfile
from llamachat.system.metadata import is_record
from llamachat.system.sanitise import Sanitiser

PARALLEL = 32  # requests at once, unless told otherwise


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
    thinking: bool | None = None  # whether answers are thought about first: see DialogFormat.having

    @cached_property
    def cache(self) -> Cache:
        """One for all prompts: what they begin with in common is computed once."""
        return Cache(self.model.context)

    def start(self, messages: list[Message] | str) -> Answer:
        """The answer to a dialog, or (raw) the continuation of a text; iterate it for the text."""
        request = self._request(messages, self.grammar)
        return request.answer(self.model, self.cache, self.interrupted)

    def ids(self, prompt: str) -> list[int]:
        """Of one prompt text, as the model is given it."""
        return self._encoded(self.dialog(prompt))

    def _encoded(self, messages: list[Message] | str) -> list[int]:
        if isinstance(messages, str):
            return self.model.encode_text(messages)
        return self.model.encode_dialog(messages, self.thinking)

    def _request(self, messages: list[Message] | str, grammar: str | None) -> Request:
        text = isinstance(messages, str)
        thoughts = None if text else self.model.dialog.thoughts
        continues = text and (self.echo or not self.model.reads)  # an answer to a source is a text of its own
        return Request(self._encoded(messages), self._constrained(grammar), continues, thoughts)

    def _constrained(self, grammar: str | None) -> AnswerSettings:
        if grammar is None:
            return self.settings
        if self.settings.stop_strings:
            raise UsageError("a stop string could cut an answer short of its grammar", remedy="leave --stop out")
        return replace(self.settings, constraint=self._constrainer.of(grammar))

    @cached_property
    def _constrainer(self) -> Constrainer:
        own_text = self.model.reads or not (self.raw or self._opened)
        drops_space = self.model.tokenizer.dummy_prefix and bool(own_text)
        size = self.model.engine.config.vocab_size
        return Constrainer(self.model.tokenizer, size, self.settings.stop_ids, drops_space)

    @cached_property
    def _opened(self) -> str:
        """The mark of a thought that the header of an answer begins."""
        dialog = self.model.dialog.having(self.thinking)
        header = dialog.turns([Message("user", "a")])[-1]
        return dialog.thoughts.opened_by("".join(map(self.model.token_text, header)))

    def dialog(self, prompt: str) -> list[Message] | str:
        """What the model is given for one prompt text: the text itself (raw), or a dialog with it."""
        return prompt if self.raw else self._with_system([Message("user", prompt)])

    def _with_system(self, messages: list[Message]) -> list[Message]:
        """The system prompt goes before a dialog that has none of its own."""
        if not self.system or (messages and messages[0].role == "system"):
            return messages
        return [Message("system", self.system), *messages]

    def stream(self, prompt: str, out: TextIO, thoughts: TextIO | None = None) -> Answer:
        """Write the text as it comes (sanitised if `out` is a terminal), and a newline; and what was thought, if to anywhere."""
        answer = self.start(self.dialog(prompt))
        said, thought = _Written(out), _Written(thoughts)
        for text, is_thought in self._text(answer):
            if not is_thought and thought.begun:
                thought.end()
            (thought if is_thought else said).write(text)
        if thought.begun:
            thought.end()
        said.end()
        return answer

    def result(self, messages: list[Message] | str) -> dict[str, Any]:
        """The JSON object of the CLI contract for one prompt."""
        answer = self.start(messages)
        return self._object(answer, answer.parts())

    def _object(self, answer: Answer, parts: Iterable[Part]) -> dict[str, Any]:
        thought, text = parted(parts)
        if self.echo:
            text = self.model.tokenizer.decode(answer.prompt) + text
        stats = answer.stats()
        result = {
            "model": self.model.name,
            "text": text,
            **({"reasoning": thought} if thought else {}),
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
                write_json(self._object(outcome.answer, outcome.answer.parts([outcome.text])), out)
            else:
                good = False
                write_json({"error": str(outcome)}, out)
        return good

    def _requests(self, lines: Source, batch: Batch, skip: int) -> Iterator[Request | LlamachatError | None]:
        for number, line in numbered(lines, lambda: batch.idle):
            if line is None:
                yield None
            elif skip:
                skip -= 1
            else:
                yield line if isinstance(line, LlamachatError) else self.parsed(line, number)

    def parsed(self, line: str, number: int) -> Request | LlamachatError:
        try:
            return self._parse(line, number)
        except LlamachatError as error:
            return error

    def _parse(self, line: str, number: int) -> Request:
        """{"prompt": ...} or {"messages": ...}, and a "schema" if the answer must follow one."""
        request = parse_line(line, number)
        grammar = self.grammar
        if isinstance(request, dict) and "schema" in request:
            grammar = from_schema(request.pop("schema"))
        if is_record(request, {"prompt": str}):
            return self._request(self.dialog(request["prompt"]), grammar)
        asks = is_record(request, {"messages": list}) and request["messages"]
        if asks and self.model.reads:
            cause = f"{self.model.name} answers a source text, it has no dialog"
            raise UsageError(cause, f"line {number} was skipped", 'write {"prompt": "..."}')
        if asks and not self.raw:
            messages = [Message.parse(message) for message in request["messages"]]
            return self._request(self._with_system(messages), grammar)
        expected = '{"prompt": "..."}' + ("" if self.raw else ' or {"messages": [{"role": ..., "content": ...}]}')
        raise UsageError(f"line {number} is not a request", "it was skipped", f"write {expected}")

    def _text(self, answer: Answer) -> Iterator[Part]:
        if self.echo:
            yield self.model.tokenizer.decode(answer.prompt), False
        yield from answer.parts()

    def _logprobs(self, answer: Answer) -> list[dict[str, Any]]:
        if not self.echo:
            return [self._entry(entry) for entry in answer.logprobs]
        first = [{**self._token(token), "logprob": None, "top": []} for token in answer.prompt[: answer.unscored]]
        return [*first, *(self._entry(entry) for entry in [*answer.prompt_logprobs, *answer.logprobs])]

    def _entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        top = [{**self._token(token), "logprob": logprob} for token, logprob in entry.top]
        return {**self._token(entry.id), "logprob": entry.logprob, "top": top}

    def _token(self, token: int) -> dict[str, Any]:
        return {"id": token, "token": self.model.token_text(token)}


class _Written:
    """A text on its way to a stream, sanitised if that is a terminal; to none, it goes nowhere."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._sanitiser = Sanitiser() if stream and stream.isatty() else None
        self.begun = False

    def write(self, text: str) -> None:
        self.begun = True
        self._put(self._sanitiser.feed(text) if self._sanitiser else text)

    def end(self) -> None:
        """And a newline."""
        self.begun = False
        self._put((self._sanitiser.finish() if self._sanitiser else "") + "\n")

    def _put(self, text: str) -> None:
        if self._stream:
            self._stream.write(text)
            self._stream.flush()


def write_json(value: dict[str, Any], out: TextIO) -> None:
    """One line; in ASCII where its characters could act (a terminal) or would be lost (an encoding that lacks them)."""
    ascii_only = out.isatty() or (out.encoding or "utf-8").lower() != "utf-8"
    out.write(json.dumps(value, ensure_ascii=ascii_only) + "\n")
    out.flush()


def read_prompt(argument: str | None, file: Path | None, what: str = "prompt") -> str:
    """The prompt: the argument or the file's text, followed by stdin's where stdin is not a terminal."""
    if argument is not None and file is not None:
        raise UsageError(f"a {what} and --file were both given", remedy="give one of them")
    given = argument if file is None else read_text(file)
    parts = [given] if given is not None else []
    if not sys.stdin.isatty():
        piped = read_given(lambda: textfile.read_all(sys.stdin.buffer), "standard input")
        parts += [piped] if piped else []
    if not any(parts):
        raise UsageError(f"there is no {what}", remedy="give it as an argument, with --file, or on stdin")
    return "\n\n".join(parts)


def read_text(file: Path) -> str:
    """A user's text file, or what comes through a pipe: see read_given."""
    return read_given(lambda: textfile.read(file, pipes=True), str(file))


def read_given(read: Callable[[], bytearray], where: str) -> str:
    """A text, from wherever it comes: without a byte-order mark and the last line's end. All else stays, CRLF too.

    Raises UsageError; DoesNotFitError for what no context holds.
    """
    try:
        text = read().decode().removeprefix("\ufeff")
    except textfile.TooLargeError as error:
        raise DoesNotFitError(f"{where} cannot be read: {error}", "it was not sent", "give a part of it") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8", "it was not sent", "convert it") from error
    except (OSError, ValueError) as error:  # ValueError: a name with NUL, too
        raise UsageError(f"{where} cannot be read: {reason(error)}") from error
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def read_grammar(schema: str | None, regex: str | None, grammar: str | None) -> str | None:
    """The grammar that --schema, --regex or --grammar asks for; schemas and grammars may be in files."""
    if sum(given is not None for given in (schema, regex, grammar)) > 1:
        raise UsageError("only one of --schema, --regex and --grammar can be followed", remedy="give one of them")
    if schema is not None:
        return from_schema(schema if schema.lstrip().startswith(("{", "[")) else read_text(Path(schema)))
    if grammar is not None:
        inline = re.search(r"^\s*start\s*:", grammar, re.MULTILINE)
        return from_lark(utf8(grammar, "--grammar") if inline else read_text(Path(grammar)))
    return None if regex is None else from_regex(utf8(regex, "--regex"))


def open_lines(file: Path) -> BinaryIO:
    """A file of requests; "-" is stdin."""
    try:
        return sys.stdin.buffer if str(file) == "-" else textfile.opened(file, pipes=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {reason(error)}") from error
