"""Which dialog format a model has."""

from llamachat.core.dialog import ChatML, DialogFormat, Llama2, Llama3, Zephyr
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import ConfigError, UsageError
from llamachat.tokenizers.jinja import Jinja

BUILTIN = {"llama3": Llama3, "llama2": Llama2, "chatml": ChatML, "zephyr": Zephyr}


def choose(name: str | None, tokenizer: Tokenizer, chat_template: str | None) -> DialogFormat:
    """The format called `name` in the catalog ("jinja" is the model's own template), or what the model says itself.

    That is its template, else what its control tokens tell. Raises UsageError when nothing does, and ConfigError when
    the one named cannot be used.
    """
    if name in BUILTIN:
        return BUILTIN[name](tokenizer)
    if name not in (None, "jinja"):
        raise ConfigError(f"{name!r} is no dialog format", "", f"use {', '.join(BUILTIN)} or jinja")
    if chat_template is not None:
        return Jinja(tokenizer, chat_template)
    if name == "jinja":
        raise ConfigError("the model has no chat template", "", f"set `dialog` to {', '.join(BUILTIN)}")
    for mark, kind in (("<|start_header_id|>", Llama3), ("<|im_start|>", ChatML)):
        if mark in tokenizer.specials:
            return kind(tokenizer)
    raise UsageError("the model has no dialog format", "it cannot chat", "let it continue text: complete --raw")
