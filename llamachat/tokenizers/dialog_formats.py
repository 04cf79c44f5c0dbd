"""Which dialog format a model has."""

from collections.abc import Callable
from functools import partial

from llamachat.core.dialog import ChatML, DialogFormat, Llama2, Llama3
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import ConfigError, UsageError
from llamachat.tokenizers.tagged import FORMS, Harmony, Tagged

BUILTIN: dict[str, Callable[[Tokenizer], DialogFormat]] = {
    "llama3": Llama3,
    "llama2": Llama2,
    "chatml": ChatML,
    "harmony": Harmony,
    **{name: partial(Tagged, form=form) for name, form in FORMS.items()},
}
NAMES = (*BUILTIN, "jinja")  # the last is the model's own template
MARKS = {  # a control token that one form alone has -> that form
    "<|start_header_id|>": "llama3",
    "<|im_sep|>": "phi4",
    "<|im_start|>": "chatml",
    "<start_of_turn>": "gemma",
    "<|start_of_role|>": "granite",
    "[gMASK]": "glm4",
    "<|channel|>": "harmony",
}


def choose(name: str | None, tokenizer: Tokenizer, chat_template: str | None) -> DialogFormat:
    """The format called `name` in the catalog ("jinja" is the model's own template), or what the model says itself.

    That is its template, else what its control tokens tell. Raises UsageError when nothing does, and ConfigError when
    the one named cannot be used.
    """
    if name in BUILTIN:
        return BUILTIN[name](tokenizer)
    if name is not None and name not in NAMES:
        raise ConfigError(f"{name!r} is no dialog format", "", f"use one of {', '.join(NAMES)}")
    if chat_template is not None:
        from llamachat.tokenizers.jinja import Jinja  # the catalog, at every start, wants the names alone

        return Jinja(tokenizer, chat_template)
    if name == "jinja":
        raise ConfigError("the model has no chat template", "", f"set `dialog` to {', '.join(BUILTIN)}")
    if told := next((kind for mark, kind in MARKS.items() if mark in tokenizer.specials), None):
        return BUILTIN[told](tokenizer)
    raise UsageError("the model has no dialog format", "it cannot chat", "let it continue text: complete --raw")
