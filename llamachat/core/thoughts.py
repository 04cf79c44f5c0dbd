"""How models mark what they think before they answer, which is no part of the answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Switch = Literal["none", "effort", "full"]  # what a model can be told: nothing, how much to think, whether to think

THINKING: Mapping[str, bool | None] = {"auto": None, "on": True, "off": False}  # None: as the format has it


@dataclass(frozen=True)
class Thoughts:
    """Marks are text as the model writes it, with control tokens by their names.

    Only a mark that nothing but space or other thoughts precede begins a thought: later ones are what the answer is about.
    """

    marks: Mapping[str, str]  # what begins a thought -> what ends it
    answers: tuple[str, ...] = ()  # what begins the answer behind a thought or without one; empty: nothing has to
    resent: bool = True  # earlier answers go to the format with what was thought, and it decides; False: without

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.marks, *self.marks.values(), *self.answers)

    def closing(self, end: str) -> str:
        """What a thought that ends so is closed with, such that an answer follows."""
        return end + self.answers[0] if self.answers else f"\n{end}\n\n"

    def opened_by(self, header: str) -> str:
        """The mark by which the header of an answer has begun a thought, as some templates do, or nothing."""
        return next((mark for mark in self.marks if header.rstrip().endswith(mark)), "")

    def silenced_by(self, header: str) -> bool:
        """Whether a header has a thought in it that is over, which keeps the model from thinking."""
        return any(end in header for end in self.marks.values())

    def parted(self, text: str) -> tuple[str, str]:
        """What was thought, and the answer."""
        thought, rest = "", text
        while mark := next((mark for mark in self.marks if rest.lstrip().startswith(mark)), None):
            said, _, rest = rest.lstrip().removeprefix(mark).partition(self.marks[mark])
            thought += said
        start = next((mark for mark in self.answers if rest.lstrip().startswith(mark)), None)
        return thought, rest if start is None else rest.lstrip().removeprefix(start)


# Tags that models put around their thoughts: DeepSeek-R1 and Qwen distillations, Nemotron; Magistral; Kimi; NovaSky and
# OpenThoughts; Reflection; others' spellings of the same; Granite 3.2. A dialog that is kept has one of these, whatever
# the model wrote.
TAGGED = Thoughts(
    {
        "<think>": "</think>",
        "[THINK]": "[/THINK]",
        "◁think▷": "◁/think▷",
        "<|begin_of_thought|>": "<|end_of_thought|>",
        "<thinking>": "</thinking>",
        "<thought>": "</thought>",
        "<reasoning>": "</reasoning>",
        "Here is my thought process:": "Here is my response:",
    }
)
