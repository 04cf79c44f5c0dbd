"""A model that thinks, in a chat: earlier turns are what transformers writes, and only what differs is computed."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from dialogs import local, local_session
from hash_engine import HashEngine, hash_model
from numpy.typing import NDArray
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library
from vocabularies import byte_level_json, write_folder

from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.chat.store import Archive
from llamachat.chat.tree import path
from llamachat.core.cache import CacheStep
from llamachat.core.dialog import ChatML, DialogFormat, Message
from llamachat.core.sampling import SamplingParams
from llamachat.events import Evicted, TextDelta
from llamachat.models.load import LoadedModel
from llamachat.tokenizers.jinja import Jinja
from llamachat.tokenizers.open import open_folder

TURN = "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
# As Qwen3: a thought is left out before the last question; an empty one keeps the model from it.
DROPS = (
    """{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}
{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set said = m.content %}{%- set why = '' %}
{%- if '</think>' in said %}{%- set why = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\n') %}{%- endif %}{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last %}{{- '<think>\n' + why + '\n</think>\n\n' }}{%- endif %}{{- said + '<|im_end|>\n' }}
{%- else %}"""
    + TURN
    + """{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""
)
# As SmolLM3: the system turn says which; a thought stays, and answers without one have an empty one.
STAYS = (
    """{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}
{{- '<|im_start|>system\nMode: ' + ('/think' if enable_thinking else '/no_think') + '<|im_end|>\n' }}
{%- for m in messages %}{%- if m.role == 'assistant' and not enable_thinking %}
{{- '<|im_start|>assistant\n<think>\n\n</think>\n' + m.content + '<|im_end|>\n' }}{%- else %}"""
    + TURN
    + """{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if not enable_thinking %}{{- '<think>\n\n</think>\n' }}{%- endif %}{%- endif %}"""
)
# As Granite: the system turn asks for it.
ASKS = (
    """{%- if thinking %}{{- '<|im_start|>system\nThink first.<|im_end|>\n' }}{%- endif %}{%- for m in messages %}"""
    + TURN
    + """{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
)
# As gpt-oss: channels, of which the last is the answer; an answer's content may not have any.
CHANNELS = """{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}
{{- '<|start|>system<|message|>Reasoning: ' + reasoning_effort + '<|end|>' }}{%- for m in messages %}
{%- if m.role == 'assistant' %}{%- if '<|channel|>' in m.content %}{{- raise_exception('tags') }}{%- endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{%- else %}
{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""
PLAIN = "{%- for m in messages %}" + TURN + "{%- endfor %}{{- '<|im_start|>assistant\n' }}"
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
SWITCH = {"enable_thinking": {"on": True, "off": False}, "thinking": {"on": True, "off": False}}
SWITCHES = {**SWITCH, "reasoning_effort": {"on": "high", "off": "low"}}


class Saying(HashEngine):
    """Draws what it is told to say next."""

    batch_invariant = False  # nothing is drafted

    def say(self, *ids: int) -> None:
        self.left = list(ids)

    def forward(self, ids: Sequence[int], step: CacheStep, logits: Literal["last", "all"]) -> NDArray[np.float32]:
        self.forwarded.append(len(ids))
        row = np.zeros(self.config.vocab_size, np.float32)
        row[self.left.pop(0) if self.left else 0] = 9
        return row if logits == "last" else np.tile(row, (len(ids), 1))

    def save_kv(self, slots: Any) -> Any:
        return {"slots": np.zeros(slots.shape, np.int8)}

    def load_kv(self, slots: Any, positions: Any, saved: Any) -> None:
        pass


@pytest.fixture(scope="module")
def library() -> Library:
    made = byte_level_json(*SPECIALS, merges=(("Ċ", "Ċ"), ("e", "s"), ("h", "m")))
    made.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")])
    return made


@pytest.fixture(scope="module")
def reference(library: Library) -> Callable[..., list[int]]:
    """transformers' ids of a template, messages and variables."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=library, eos_token="<|im_end|>")

    def ids(template: str, messages: list[dict[str, str]], **told: Any) -> list[int]:
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        return list(fast.apply_chat_template(messages, chat_template=template, **options, **told))

    return ids


class Chat:
    """A dialog with a model that says what it is told to."""

    def __init__(
        self, library: Library, folder: Path, dialog: str | type[ChatML], slots: int = 600, **options: Any
    ) -> None:
        self.library, self.template = library, dialog if isinstance(dialog, str) else DROPS
        model = hash_model(slots)
        model.tokenizer = open_folder(write_folder(folder, library, eos_token="<|return|>"))
        self.engine = Saying(slots, library.get_vocab_size())
        model.engine = self.engine
        model.dialog = Jinja(model.tokenizer, dialog) if isinstance(dialog, str) else dialog(model.tokenizer)
        self.model: LoadedModel = model
        settings = Settings(SamplingParams(temperature=0), max_tokens=60)
        self.session: Session = local_session(model, settings, **options)
        self.session.notices()

    def ids(self, text: str) -> list[int]:
        return list(self.library.encode(text, add_special_tokens=False).ids)

    def ask(self, question: str, answer: str) -> list[Any]:
        """The model answers so; how many tokens of the prompt were computed is in `computed`, of how many that were new."""
        before = list(local(self.session).cache.log)
        self.engine.say(*self.ids(answer))
        self.engine.forwarded.clear()
        events = list(self.session.ask(question))
        self.prompt = self.shown()
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, self.prompt, strict=False)))
        self.computed, self.differing = self.engine.forwarded[0], len(self.prompt) - min(common, len(self.prompt) - 1)
        return events

    def shown(self) -> list[int]:
        """What the model read before its last answer."""
        answer = self.session.history.tree.active
        log = local(self.session).cache.log
        said = list(answer.ids or ())
        end = next(n for n in range(len(said) + 1) if log[len(log) - len(said) + n :] == said[: len(said) - n])
        return log[: len(log) - len(said) + end]

    def messages(self, whole: bool = True) -> list[dict[str, str]]:
        nodes = path(self.session.history.tree.active)[:-1]
        return [{"role": node.role, "content": node.text if whole else node.said} for node in nodes]

    def told(self) -> dict[str, Any]:
        think = str(self.session.parameters()["think"])
        names = [name for name in SWITCHES if f"{name}" in self.template and think != "auto"]
        return {name: SWITCHES[name][think] for name in names if name != "thinking" or "if thinking" in self.template}


THOUGHT = "<think>\nhm, well\n</think>\n\nYes, yes.<|im_end|>"
ANSWERS = {
    "drops": (DROPS, THOUGHT, "No.<|im_end|>"),
    "chatml": (ChatML, THOUGHT, "No.<|im_end|>"),
    "stays": (STAYS, THOUGHT, "No.<|im_end|>"),
    "asks": (ASKS, THOUGHT, "No.<|im_end|>"),
    "channels": (
        CHANNELS,
        "<|channel|>analysis<|message|>hm, well<|end|><|start|>assistant<|channel|>final<|message|>Yes, yes.<|return|>",
        "<|channel|>final<|message|>No.<|return|>",
    ),
}


@pytest.mark.parametrize("think", ["auto", "on", "off"])
@pytest.mark.parametrize("kind", ANSWERS)
def test_later_turns_are_what_transformers_writes_and_only_what_differs_is_computed(
    library: Library, reference: Callable[..., list[int]], tmp_path: Path, kind: str, think: str
) -> None:
    dialog, thought, plain = ANSWERS[kind]
    chat = Chat(library, tmp_path, dialog)
    chat.session.set_parameter("think", think)
    for number, answer in enumerate([thought, plain, thought] if think != "off" else [plain, plain, thought]):
        events = chat.ask(f"question {number}", answer)
        assert chat.prompt == reference(chat.template, chat.messages(kind != "channels"), **chat.told()), number
        assert chat.computed == chat.differing
        said = [(e.text, e.thinking) for e in events if isinstance(e, TextDelta) and e.text]
        assert "".join(text for text, thinking in said if not thinking).strip() == (
            "No." if answer is plain else "Yes, yes."
        )
        assert "".join(text for text, thinking in said if thinking).strip() == ("" if answer is plain else "hm, well")
    stats = events[-1].stats
    assert stats.thought_tokens == len(chat.ids("\nhm, well\n" if kind != "channels" else "hm, well"))
    assert 0 < stats.thought_s < 60 and chat.session.thought() == "hm, well"
    assert chat.session.last_stats == stats


@pytest.mark.parametrize("kind", ANSWERS)
def test_another_wish_is_the_next_answers_and_costs_what_the_template_changes(
    library: Library, reference: Callable[..., list[int]], tmp_path: Path, kind: str
) -> None:
    dialog, _, plain = ANSWERS[kind]
    chat, notices = Chat(library, tmp_path, dialog), list[str]()
    for number, think in enumerate(["auto", "off", "on", "off", "auto"]):
        chat.session.set_parameter("think", think)
        chat.ask(f"question {number}", plain)
        assert chat.prompt == reference(chat.template, chat.messages(kind != "channels"), **chat.told()), think
        assert chat.computed == chat.differing
        notices += chat.session.notices()
    assert notices == (
        ["hash always thinks; told not to, it thinks as little as it can"] * 2 if kind == "channels" else []
    )


def test_where_there_is_no_switch_one_line_says_so(library: Library, tmp_path: Path) -> None:
    chat = Chat(library, tmp_path, PLAIN)
    chat.session.set_parameter("think", "off")
    (line,) = chat.session.notices()
    assert line.startswith("hash has no switch for thinking") and "\n" not in line
    assert not chat.session.notices(), "once"
    chat.ask("a", "No.<|im_end|>")
    assert chat.session.turns()[-1].text == "No."


@pytest.mark.parametrize("kind", ["drops", "chatml", "channels"])
def test_a_budget_ends_the_thought_and_the_answer_is_gone_on_with_to_the_same(
    library: Library, reference: Callable[..., list[int]], tmp_path: Path, kind: str
) -> None:
    dialog, thought, plain = ANSWERS[kind]
    chat = Chat(library, tmp_path, dialog)
    chat.session.set_parameter("think_budget", "4")
    marks = chat.model.dialog.thoughts
    closing = chat.ids(marks.closing("<|end|>" if kind == "channels" else "</think>"))
    begin = thought[: thought.index("hm")]
    spaced = "\n" if kind != "channels" else ""
    chat.ask("a", "")
    overruled = "x" * len(closing)
    said = [*chat.ids(begin), *chat.ids("hm, well")[: 4 - len(spaced)], *chat.ids(overruled + "Yes.")]
    chat.engine.say(*said)
    list(chat.session.regenerate())
    answer = chat.session.history.tree.active
    ids = list(answer.ids or ())
    at = next(at for at in range(len(ids)) if ids[at : at + len(closing)] == closing)
    assert at == len(chat.ids(begin)) + 4 - len(spaced) and answer.said.strip().startswith("Yes.")
    assert answer.thought.strip() == "hm, w"[: 5 - len(spaced)].strip()
    chat.ask("b", plain)
    assert chat.prompt == reference(chat.template, chat.messages(kind != "channels"), **chat.told())


def test_a_thought_is_kept_on_disk_with_its_turn_and_the_dialog_goes_on(
    library: Library, reference: Callable[..., list[int]], tmp_path: Path
) -> None:
    archive = Archive(tmp_path / "sessions")
    _, thought, plain = ANSWERS["channels"]
    chat = Chat(library, tmp_path, CHANNELS, archive=archive)
    chat.session.set_parameter("think", "on")
    chat.ask("a", thought)
    chat.session.save("mine")
    tokens = chat.session.tokens(1)
    ids = list(chat.session.history.tree.active.ids or ())
    assert len(tokens) == len(ids)
    chat.engine.say(ids[11], 0, *ids[12:], chat.library.token_to_id("<|return|>"))  # scored; put back; gone on
    events = list(chat.session.take_alternative(12, 1))
    said = [
        "".join(e.text for e in events if isinstance(e, TextDelta) and e.thinking is kind) for kind in (True, False)
    ]
    assert said == ["hm, well", "Yes, yes."] and len(chat.session.branches()) == 2
    chat.session.close()
    again = Chat(library, tmp_path / "again", CHANNELS, archive=archive)
    again.session.load("mine")
    assert again.session.thought() == "hm, well" and again.session.turns()[-1].text == "Yes, yes."
    assert again.session.history.tree.active.text == "<think>hm, well</think>Yes, yes."
    again.ask("b", plain)
    assert again.prompt == reference(CHANNELS, again.messages(whole=False), **again.told())


@pytest.mark.parametrize("kind", ["drops", "stays"])
def test_a_full_window_rolls_on_with_thoughts_in_it(library: Library, tmp_path: Path, kind: str) -> None:
    dialog, thought, plain = ANSWERS[kind]
    chat = Chat(library, tmp_path, dialog, 150)
    evicted = 0
    for number in range(12):
        chat.session.set_parameter("think", ["auto", "off", "on"][number % 3])
        chat.engine.say(*chat.ids(plain if number % 2 else thought))
        events = list(chat.session.ask(f"question {number}"))
        evicted += sum(event.turns for event in events if isinstance(event, Evicted))
        view, cache = local(chat.session).window.view, local(chat.session).cache
        whole = view.ids(chat.session.history.tree.active.ids or ()) if view else []
        assert whole[: len(cache)] == cache.log and len(whole) - len(cache) <= 1
    assert evicted > 2


def test_what_ends_a_thought_ends_no_answer_and_turns_are_whole(library: Library, tmp_path: Path) -> None:
    dialog = Chat(library, tmp_path, CHANNELS).model.dialog
    assert dialog.stop_ids == {library.token_to_id("<|return|>")}
    question, answer, again, header = dialog.turns(
        [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    )
    assert question[-1] == answer[-1] == again[-1] == library.token_to_id("<|end|>") and again[0] == header[0]


def test_a_dialog_format_is_one_object_for_each_wish(library: Library, tmp_path: Path) -> None:
    dialog: DialogFormat = Chat(library, tmp_path, DROPS).model.dialog
    assert dialog.having(None) is dialog and dialog.having(False) is dialog.having(True).having(False)
    assert dialog.having(False).having(None) is dialog
