"""A question -> the body that a server is sent: what every server knows always, what only some know where it is asked for."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llamachat.core.dialog import Message
from llamachat.core.sampling import SamplingParams
from llamachat.core.thoughts import TAGGED
from llamachat.remote.abilities import Abilities
from llamachat.remote.asking import NO_LOGPROBS, Format, Question, ServerError

NEUTRAL = SamplingParams()
LEAST_BIAS = -100.0  # what bans a token
# What may be left out, and how people are told of it. Everything else decides what the answer is to.
OPTIONAL: Mapping[str, str] = {
    **{key: key for key in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed")},
    **dict.fromkeys(("repetition_penalty", "repeat_penalty"), "the repetition penalty"),
    **dict.fromkeys(("logprobs", "top_logprobs"), NO_LOGPROBS),
    **dict.fromkeys(("chat_template_kwargs", "reasoning_effort"), "whether to think"),
    "logit_bias": "the bias of tokens",
    "echo": "logprobs of the text itself",
    "max_tokens": "that there is no limit",  # where it says so: see `optional`
    "stream_options": "",
    **dict.fromkeys(("guided_regex", "guided_grammar"), ""),  # where vLLM's later key is beside them: see `optional`
}
OTHER_NAMES = {"max_tokens": "max_completion_tokens"}  # OpenAI's own since its models think
TOGETHER = ({"logprobs", "top_logprobs"},)  # neither without the other


def unstreamed(sent: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with the answer as one."""
    return {**without(sent, ["stream_options"]), "stream": False}


def body(question: Question, model: str, abilities: Abilities) -> dict[str, Any]:
    """All that is asked, as JSON has it. Raises ServerError for what the server cannot do and cannot be left out."""
    sent: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    sent |= _text(question) if question.text is not None else _chat(question, abilities)
    sent |= _sampling(question.sampling, abilities)
    if question.stop:
        sent["stop"] = list(question.stop)
    if question.format is not None:
        sent |= _format(question.format, abilities, question.text is not None)
    return unstreamed(sent) if echoes(question) else sent


def echoes(question: Question) -> bool:
    """Whether the server is to repeat the text, for its logprobs. llama-cpp-python does so only in an answer that is one."""
    return question.text is not None and question.echo and question.top_logprobs is not None


def optional(sent: Mapping[str, Any], key: str) -> bool:
    """Whether the question remains what it is without this key."""
    if key.startswith("guided_"):
        return "structured_outputs" in sent
    return key in OPTIONAL and (key != "max_tokens" or sent.get(key) is None)


def without(sent: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Leave out keys, and what does not go without them."""
    dropped = {*keys}.union(*(group for group in TOGETHER if group & {*keys}))
    return {key: value for key, value in sent.items() if key not in dropped}


def renamed(sent: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """These keys by their other name."""
    return {OTHER_NAMES[key] if key in keys else key: value for key, value in sent.items()}


def left_out(wanted: Mapping[str, Any], sent: Mapping[str, Any]) -> list[str]:
    """What of a body was not sent, in words for people."""
    return [word for key in wanted if key not in sent and (word := OPTIONAL[key]) and OTHER_NAMES.get(key) not in sent]


def missing(question: Question, abilities: Abilities) -> list[str]:
    """What is asked for that this kind of server is known not to have, in words for people."""
    params = question.sampling
    gone = [key for key in ("top_k", "min_p") if getattr(params, key) and key not in abilities.extras]
    if params.repetition_penalty != NEUTRAL.repetition_penalty and not abilities.penalties:
        gone.append(OPTIONAL["repetition_penalty"])
    return gone


def particular(question: Question) -> bool:
    """Whether it asks for anything that servers have in different ways."""
    params = question.sampling
    extras = any(getattr(params, key) != getattr(NEUTRAL, key) for key in ("repetition_penalty", "top_k", "min_p"))
    return extras or question.thinking is not None or question.format is not None


def _chat(question: Question, abilities: Abilities) -> dict[str, Any]:
    sent: dict[str, Any] = {"messages": [_message(each) for each in question.messages]}
    if question.max_tokens is not None:
        sent["max_tokens"] = question.max_tokens
    if question.top_logprobs is not None:
        sent |= {"logprobs": True, "top_logprobs": max(question.top_logprobs, 1)}
    if question.thinking is not None:
        sent |= _thinking(question.thinking, abilities)
    return sent


def _message(message: Message) -> dict[str, str]:
    """What was thought before an answer is not sent."""
    content = message.content
    if message.role == "assistant":
        thought, said = TAGGED.parted(content)
        content = said.lstrip("\n") if thought or said != content else content
    return {"role": message.role, "content": content}


def _text(question: Question) -> dict[str, Any]:
    """A limit of null is none: without the key servers stop at 16 tokens."""
    sent: dict[str, Any] = {"prompt": question.text, "max_tokens": question.max_tokens}
    if question.top_logprobs is not None:
        sent["logprobs"] = max(question.top_logprobs, 1)
    if echoes(question):
        sent["echo"] = True
    return sent


def _thinking(wanted: bool, abilities: Abilities) -> dict[str, Any]:
    """Templates have it in two spellings, and leave alone what they do not know."""
    if abilities.effort:
        return {"reasoning_effort": "medium" if wanted else "none"}
    return {"chat_template_kwargs": {"enable_thinking": wanted, "thinking": wanted}}


def _sampling(params: SamplingParams, abilities: Abilities) -> dict[str, Any]:
    sent: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p}
    if params.seed is not None:
        sent["seed"] = params.seed
    for key in ("presence_penalty", "frequency_penalty", *sorted(abilities.extras)):
        if key in abilities.own or getattr(params, key) != getattr(NEUTRAL, key):
            sent[key] = getattr(params, key)
    if "repetition_penalty" in abilities.own or params.repetition_penalty != NEUTRAL.repetition_penalty:
        sent |= dict.fromkeys(abilities.penalties, params.repetition_penalty)
    if params.logit_bias:
        bias = {str(token): max(value, LEAST_BIAS) for token, value in params.logit_bias.items()}
        sent["logit_bias"] = {token: value for token, value in bias.items() if math.isfinite(value)}
    return sent


def _format(wanted: Format, abilities: Abilities, text: bool) -> dict[str, Any]:
    if wanted.kind == "schema":
        return _schema(json.loads(wanted.text), abilities, text)
    keys = abilities.regex if wanted.kind == "regex" else abilities.lark
    if not keys:
        raise _cannot("a regular expression" if wanted.kind == "regex" else "a grammar in lark's notation")
    return _nested(keys, wanted.text)


def _schema(schema: Any, abilities: Abilities, text: bool) -> dict[str, Any]:
    if text and abilities.text_schema is None:
        raise _cannot("a JSON schema when it goes on with a plain text")
    if text and abilities.text_schema == "json_schema":
        return {"json_schema": schema}
    if abilities.schema == "json_object":
        return {"response_format": {"type": "json_object", "schema": schema}}
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _nested(keys: Sequence[str], value: str) -> dict[str, Any]:
    """Each key with the value; a dotted one as an object in an object."""
    sent: dict[str, Any] = {}
    for key in keys:
        outer, _, inner = key.partition(".")
        sent[outer] = {inner: value} if inner else value
    return sent


def _cannot(what: str) -> ServerError:
    remedy = "use another server (vLLM has them), a JSON schema, or a model on this machine"
    return ServerError(f"the server is not known to follow {what}", "nothing was asked", remedy)
