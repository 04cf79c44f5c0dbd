"""window.py: for every dialog format the model sees what a fresh rendering would say, and pins what must stay."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from dialogs import local, local_session
from hash_engine import HashEngine, hash_model

from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.chat.tree import path
from llamachat.core.dialog import DialogFormat, Message
from llamachat.core.sampling import SamplingParams
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import DoesNotFitError
from llamachat.events import Evicted
from llamachat.tokenizers.dialog_formats import choose
from llamachat.tokenizers.text_tokenizer import TextTokenizer

NAMES = [
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
]
PREAMBLE = """{% if messages[0]['role'] != 'system' %}<|im_start|>system
You are of this template.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


PAIRS = [b"ST", b"YS", b"er", b"ss", b"st"]  # tokens too, so that a tag can be written in two ways
SIZE = 256 + len(NAMES) + len(PAIRS)


def merged(text: str) -> list[int]:
    data, ids = text.encode(), list[int]()
    while data:
        pair = data[:2] in PAIRS
        ids.append(SIZE - len(PAIRS) + PAIRS.index(data[:2]) if pair else data[0])
        data = data[1 + pair :]
    return ids


def tokenizer(bos: str | None = None) -> Tokenizer:
    specials = {name: 256 + i for i, name in enumerate(NAMES)}
    return TextTokenizer(
        ids=lambda text, start: merged(text),
        piece=lambda token: bytes([token]) if token < 256 else PAIRS[token - SIZE],
        vocab_size=SIZE,
        specials=specials,
        bos_id=specials[bos] if bos else None,
        eos_ids=frozenset({specials["</s>"], specials["<|eot_id|>"], specials["<|im_end|>"]}),
        names={"bos_token": "<s>", "eos_token": "</s>"},
    )


FORMATS: dict[str, tuple[str | None, str, str | None]] = {
    "llama3": ("llama3", "<|begin_of_text|>", None),
    "llama2": ("llama2", "<s>", None),
    "chatml": ("chatml", "", None),
    "zephyr": ("zephyr", "", None),
    "jinja": (None, "", PREAMBLE),
}


def session(name: str, system: str | None, slots: int = 900, **options: Any) -> Session:
    dialog, bos, template = FORMATS[name]
    model = hash_model(slots)
    model.tokenizer = tokenizer(bos or None)
    model.engine = HashEngine(slots, SIZE)
    model.checkpoint.chat_template = template  # type: ignore[misc]
    model.entry = replace(model.entry, dialog=dialog)
    model.dialog = choose(dialog, model.tokenizer, template)
    model.stop_ids = frozenset()
    return local_session(model, Settings(SamplingParams(temperature=0), max_tokens=9), system, **options)


def rendered(chat: Session, ids_of: Callable[[Message], Message] = lambda m: m) -> list[int]:
    """The active branch, rendered at once."""
    system = [Message("system", chat.system)] if chat.system else []
    *before, answer = (node.message for node in path(chat.history.tree.active))
    return local(chat).model.dialog.encode([*system, *before]) + list(answer.ids or ())


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", FORMATS)
def test_until_something_is_dropped_the_cache_holds_a_fresh_rendering(name: str, system: str | None) -> None:
    chat = session(name, system)
    for text in ("one", "two [/INST] <|im_end|>", " three "):
        list(chat.ask(text))
        expected = rendered(chat)
        assert (
            local(chat).cache.log == expected[: len(local(chat).cache)] and len(expected) - len(local(chat).cache) <= 1
        )
    list(chat.edit(2, "otherwise"))
    assert local(chat).cache.log == rendered(chat)[: len(local(chat).cache)]
    chat.set_system("Now another.")
    list(chat.ask("four"))
    assert local(chat).cache.log == rendered(chat)[: len(local(chat).cache)]


def preamble(dialog: DialogFormat) -> list[int]:
    """What a format writes before the first question and no other."""
    ask, say = Message("user", "a"), Message("assistant", "a")
    first, _, later, _ = dialog.turns([ask, say, ask])
    return first[: len(first) - len(later)]


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", FORMATS)
def test_what_stands_before_the_first_question_stays_and_behind_it_whole_turns(name: str, system: str | None) -> None:
    chat = session(name, system, 260)
    dialog, dropped = local(chat).model.dialog, 0
    given = [Message("system", system)] if system else []
    pinned = dialog.turns([*given, Message("user", "a")])[0] if system else preamble(dialog)
    pinned = pinned if len(pinned) >= 4 else dialog.turns([Message("user", "question 0 " + "x" * 9)])[0][:4]
    for number in range(14):
        dropped += sum(event.turns for event in chat.ask(f"question {number} " + "x" * 9) if isinstance(event, Evicted))
        assert local(chat).cache.log[: len(pinned)] == pinned and local(chat).cache.pinned == len(pinned)
    assert dropped > 2
    nodes = path(chat.history.tree.active)
    turns = dialog.turns([*given, *(node.message for node in nodes[:-1])])[bool(system) :]
    behind = [token for turn in turns[2 * dropped :] for token in turn] + list(nodes[-1].ids or ())
    assert local(chat).cache.log[len(pinned) :] == behind[: len(local(chat).cache) - len(pinned)]


def test_a_system_prompt_of_the_templates_own_is_pinned() -> None:
    chat = session("jinja", None, 260)
    list(chat.ask("a"))
    assert b"You are of this template." in bytes(
        token for token in local(chat).cache.log[: local(chat).cache.pinned] if token < 256
    )


def test_a_system_prompt_that_leaves_no_room_is_refused_and_another_goes_on() -> None:
    chat = session("chatml", "x" * 250, 260)
    with pytest.raises(DoesNotFitError, match="the system prompt makes"):
        list(chat.ask("a"))
    assert path(chat.history.tree.active) == []
    chat.set_system("short")
    list(chat.ask("a"))


def test_a_long_history_without_its_cache_costs_no_more_than_what_fits() -> None:
    chat = session("chatml", "Be brief.", 400)
    chat.begin([("user", "question"), ("assistant", "answer")] * 300)
    encoded: list[int] = []
    turns = local(chat).model.dialog.turns
    local(chat).model.dialog.turns = lambda messages: encoded.append(len(messages)) or turns(messages)  # type: ignore[method-assign, func-returns-value]
    (first, *_) = chat.ask("and now?")
    assert isinstance(first, Evicted) and first.turns > 250
    assert sum(encoded) < 120 and chat.turns()[1].seen == "dropped" and chat.turns()[-1].seen == "kept"
    list(chat.ask("go on"))
    assert len(local(chat).cache) > 200
