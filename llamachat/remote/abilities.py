"""What the servers that people run can be told beyond OpenAI's interface. Which one it is, its list of models says.

Each takes unknown keys in silence (but for transformers' and OpenAI's own, which refuse them), so that only a table can
tell what would be lost: from the sources and documentation of each, as of 2026.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Extra = Literal["top_k", "min_p"]


@dataclass(frozen=True)
class Abilities:
    """Of one kind of server."""

    penalties: tuple[str, ...]  # its names for the repetition penalty; none: it has none
    extras: frozenset[Extra] = frozenset({"top_k", "min_p"})
    own: frozenset[str] = frozenset()  # what it has other defaults for than none: said also where none is wanted
    regex: tuple[str, ...] = ()  # keys that take a regular expression
    lark: tuple[str, ...] = ()  # keys that take a grammar in lark's notation
    effort: bool = False  # thinking is a matter of `reasoning_effort`, rather than of its template
    schema: Literal["json_schema", "json_object"] = "json_schema"  # the type of a `response_format`
    text_schema: Literal["response_format", "json_schema"] | None = "response_format"  # the key for a plain text's


# vLLM renamed its keys in 0.11 and dropped the old ones in 0.12: both are sent, each version takes its own.
VLLM = Abilities(
    ("repetition_penalty",),
    regex=("structured_outputs.regex", "guided_regex"),
    lark=("structured_outputs.grammar", "guided_grammar"),
)
OTHER = Abilities(("repetition_penalty", "repeat_penalty"))
KINDS: Mapping[str, Abilities] = {  # by `owned_by`
    "vllm": VLLM,
    "sglang": Abilities(("repetition_penalty",), regex=("regex",)),
    "llamacpp": Abilities(  # llama-server; its `grammar` is GBNF
        ("repeat_penalty",), own=frozenset({"top_k", "min_p"}), text_schema="json_schema"
    ),
    "me": Abilities(  # llama-cpp-python; it would penalise repetition by 1.1
        ("repeat_penalty",),
        own=frozenset({"top_k", "min_p", "repetition_penalty"}),
        schema="json_object",
        text_schema=None,
    ),
    "library": Abilities((), frozenset(), effort=True, text_schema=None),  # ollama
    "organization_owner": Abilities(("repeat_penalty",), frozenset({"top_k"})),  # LM Studio
}


def of(owner: object) -> Abilities:
    """Those of a server whose models belong to `owner`."""
    return KINDS.get(owner, OTHER) if isinstance(owner, str) else OTHER
