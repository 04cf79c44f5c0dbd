"""FORMS: dialogs that are written as a start and an end around each message, by model; and harmony, which has channels.

What each writes is in its model's chat template or prompt guide; a template that comes with the model goes before all this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

from llamachat.core.dialog import Content, Format, Layout, Message, Part, Role
from llamachat.core.thoughts import Switch
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import UsageError
from llamachat.families.gpt_oss import HARMONY

BOS, EOS = "{bos}", "{eos}"  # in a form: what the tokenizer calls them


@dataclass(frozen=True)
class Form:
    """How one family writes a dialog; `{role}` in `start` is the role, or what `names` calls it."""

    start: str | Mapping[Role, str]
    end: str | Mapping[Role, str]
    opening: str  # of the assistant's turn
    needs: tuple[str, ...]  # control tokens without which it is not this form
    ends: tuple[str, ...]  # control tokens that end an answer
    first: str = ""  # before the first message
    names: Mapping[str, str] = field(default_factory=dict)
    system: Literal["turn", "first", "last"] = "turn"  # a turn of its own, or text in the first or last user's turn
    tool: bool = False  # whether there is a role "tool"
    strip: bool = False  # contents without spaces around them
    alternate: bool = False  # user and assistant must take turns, user first
    tags: tuple[str, ...] = ()  # what of it is plain text where the tokenizer has no control token for it


_INST: dict[Role, str] = {"user": "[INST]", "assistant": ""}
_SPACED: dict[Role, str] = {"user": "[INST] ", "assistant": " "}
_ANSWERED: dict[Role, str] = {"user": "[/INST]", "assistant": EOS, "system": "[/SYSTEM_PROMPT]"}
_MISTRAL: dict[str, Any] = {"needs": ("[INST]", "[/INST]"), "ends": (EOS,), "first": BOS, "alternate": True}
_PHI, _ROLES = ("<|end|>", "<|endoftext|>"), ("<|user|>", "<|assistant|>")

FORMS: dict[str, Form] = {
    "gemma": Form(  # Gemma 1 to 3
        "<start_of_turn>{role}\n", "<end_of_turn>\n", "<start_of_turn>model\n", ("<start_of_turn>", "<end_of_turn>"),
        ("<end_of_turn>", "<eos>"), first=BOS, names={"assistant": "model"}, system="first", strip=True, alternate=True,
    ),
    "phi3": Form("<|{role}|>\n", "<|end|>\n", "<|assistant|>\n", ("<|end|>", *_ROLES), _PHI),
    "phi4-mini": Form("<|{role}|>", "<|end|>", "<|assistant|>", ("<|end|>", *_ROLES), _PHI),
    "phi4": Form(
        "<|im_start|>{role}<|im_sep|>", "<|im_end|>", "<|im_start|>assistant<|im_sep|>",
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"), ("<|im_end|>", "<|endoftext|>"),
    ),
    "granite": Form(  # Granite 3
        "<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n", "<|start_of_role|>assistant<|end_of_role|>",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), ("<|end_of_text|>",), tool=True,
    ),
    "glm4": Form(  # an answer ends where the next role begins
        "<|{role}|>\n", "", "<|assistant|>", ("[gMASK]", "<sop>", "<|system|>", *_ROLES),
        ("<|endoftext|>", "<|user|>", "<|observation|>"), first="[gMASK]<sop>", names={"tool": "observation"}, tool=True,
    ),
    "olmo2": Form(
        "<|{role}|>\n", {"system": "\n", "user": "\n", "assistant": f"{EOS}\n"}, "<|assistant|>\n", (EOS,), (EOS,),
        first=BOS, tags=("<|system|>", *_ROLES),
    ),
    "zephyr": Form(  # Hugging Face's, and TinyLlama's chat
        "<|{role}|>\n", f"{EOS}\n", "<|assistant|>\n", (EOS,), (EOS,), tags=("<|system|>", *_ROLES)
    ),
    "mistral-v3": Form(_SPACED, _ANSWERED, "", system="last", **_MISTRAL),
    "mistral-tekken": Form(_INST, _ANSWERED, "", system="last", **_MISTRAL),
    "mistral-v7": Form(
        {**_SPACED, "system": "[SYSTEM_PROMPT] "}, _ANSWERED, "", **_MISTRAL
    ),
    "mistral-v7-tekken": Form({**_INST, "system": "[SYSTEM_PROMPT]"}, _ANSWERED, "", **_MISTRAL),
}  # fmt: skip


class Tagged(Format):
    """A dialog in one of FORMS. Raises UsageError for roles, and for an order of them, that the form does not have."""

    def __init__(self, tokenizer: Tokenizer, form: Form) -> None:
        self.form = form
        names = {BOS: tokenizer.names.get("bos_token", ""), EOS: tokenizer.names.get("eos_token", "</s>")}
        self._names = names
        super().__init__(
            tokenizer, [names.get(name, name) for name in form.needs], [names.get(x, x) for x in form.ends]
        )

    @property
    def tags(self) -> Sequence[str]:
        """See Format."""
        return self.form.tags

    def layout(self, messages: Sequence[Message]) -> Layout:
        """See Format."""
        system = [m for m in messages[:1] if m.role == "system" and self.form.system != "turn"]
        spoken = messages[len(system) :]
        self._check(spoken)
        turns: Layout = [self._turn(message) for message in spoken]
        if system:
            users = [number for number, message in enumerate(spoken) if message.role == "user"]
            number = users[0 if self.form.system == "first" else -1]
            turns[number][1:1] = [Content(system[0].content), "\n\n"]
            turns.insert(0, [])
        turns.append([self.form.opening] if self.form.opening else [])
        turns[0].insert(0, self._filled(self.form.first))
        return turns

    def _turn(self, message: Message) -> list[Part]:
        role, form = message.role, self.form
        start, end = (part if isinstance(part, str) else part[role] for part in (form.start, form.end))
        content = message.content.strip() if form.strip else message.content
        opened = start.replace("{role}", form.names.get(role, role))
        if message.ids is not None:  # the model wrote it behind the opening
            opened = form.opening
        return [opened, Content(content, message.ids), self._filled(end)]

    def _check(self, spoken: Sequence[Message]) -> None:
        if not self.form.tool and any(m.role == "tool" for m in spoken):
            raise UsageError("this model's dialogs have no role 'tool'", "it cannot answer", "leave it out")
        took_turns = spoken[1:] if spoken and spoken[0].role == "system" else spoken
        in_order = all(m.role == ("user", "assistant")[at % 2] for at, m in enumerate(took_turns))
        if self.form.alternate and not (took_turns and in_order):
            raise UsageError("user and assistant do not take turns", "this model cannot answer", "reorder the messages")

    def _filled(self, text: str) -> str:
        return text.replace(BOS, self._names[BOS]).replace(EOS, self._names[EOS])


class Harmony(Format):
    """gpt-oss's dialogs (https://github.com/openai/harmony): channels for what is thought and for what is said.

    The system turn is the model's own, with the date and how much it is to think; ours is the developer's. Of an answer's
    channels only the final one is written again, as the model's template does.
    """

    thoughts = HARMONY
    switch: Switch = "effort"

    def __init__(self, tokenizer: Tokenizer) -> None:
        needs = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
        super().__init__(tokenizer, needs, ends=("<|return|>", "<|call|>"))

    def layout(self, messages: Sequence[Message]) -> Layout:
        """See Format. Raises UsageError for the role "tool"."""
        if any(m.role == "tool" for m in messages):
            raise UsageError("this model's tools are not offered here", "it cannot answer", "leave them out")
        turns: Layout = [self._turn(message) for message in messages]
        turns.append(["<|start|>assistant"])
        turns[0].insert(0, self._own_system())
        return turns

    def _turn(self, message: Message) -> list[Part]:
        match message.role:
            case "system":
                start, end = "<|start|>developer<|message|># Instructions\n\n", "\n\n<|end|>"
            case "assistant":
                start, end = "<|start|>assistant<|channel|>final<|message|>", "<|end|>"
            case _:
                start, end = "<|start|>user<|message|>", "<|end|>"
        return [start, Content(message.content, message.ids), end]

    def _own_system(self) -> str:
        effort = {None: "medium", True: "high", False: "low"}[self.thinking]
        return (
            "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
            f"Knowledge cutoff: 2024-06\nCurrent date: {date.today()}\n\nReasoning: {effort}\n\n"
            "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        )
