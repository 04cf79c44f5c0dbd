"""What a model thinks before it answers: told apart from the answer by the tags around it, which are not shown."""

from collections.abc import Iterator, Mapping

from llamachat.core.tokenizer import Tokenizer

# Tags that Llama-family models put around their thoughts: DeepSeek-R1 and Qwen distillations, Nemotron; Magistral; Kimi;
# NovaSky and OpenThoughts; Reflection; others' spellings of the same.
TAGS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
}


def spelled_tags(tokenizer: Tokenizer) -> Mapping[int, bytes]:
    """Control tokens that are such tags: their text, which a detokenizer would leave out."""
    names = {*TAGS, *TAGS.values()}
    return {token: name.encode() for name, token in tokenizer.specials.items() if name in names}


def opened_by(header: str) -> str | None:
    """The tag by which the header of an answer has begun thoughts, as some templates do."""
    return next((tag for tag in TAGS if header.rstrip().endswith(tag)), None)


class ThinkSplitter:
    """Pieces of text in; (text, whether it is thought) out, across any cutting of the pieces.

    Only a tag that nothing but space or other thoughts precede begins thoughts: later ones are what the answer is about.
    """

    def __init__(self) -> None:
        self._end: str | None = None  # of the thoughts under way
        self._done = False  # the answer has begun
        self._held = ""

    def add(self, text: str) -> list[tuple[str, bool]]:
        """What of the text so far is certain, without the tags."""
        return list(self._split(text))

    def finish(self) -> list[tuple[str, bool]]:
        """What was held back."""
        held, self._held = self._held, ""
        return [(held, self._end is not None)] if held else []

    def _split(self, text: str) -> Iterator[tuple[str, bool]]:
        self._held += text
        while self._held:
            if self._done:
                yield self._take(len(self._held)), False
            elif self._end is not None:
                at = self._held.find(self._end)
                said = self._take(_certain(self._held, self._end) if at < 0 else at)
                if said:
                    yield said, True
                if at < 0:
                    return
                self._take(len(self._end))
                self._end = None
            elif not self._opening():
                return

    def _opening(self) -> bool:
        """Whether it is clear what stands first: thoughts, or the answer."""
        start = self._held.lstrip()
        tag = next((tag for tag in TAGS if start.startswith(tag)), None)
        if tag is not None:
            self._held, self._end = start[len(tag) :], TAGS[tag]
        elif any(each.startswith(start) for each in TAGS):
            return False
        else:
            self._done = True
        return True

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken


def without_thinking(text: str) -> str:
    """The answer alone."""
    splitter = ThinkSplitter()
    return "".join(part for part, thought in [*splitter.add(text), *splitter.finish()] if not thought)


def _certain(text: str, tag: str) -> int:
    """How much of the text no tag can begin in."""
    starts = range(max(0, len(text) - len(tag) + 1), len(text))
    return next((at for at in starts if tag.startswith(text[at:])), len(text))
