"""What Llama has beyond Meta's code: texts that a model reads, to label them, to find in them, or to compare them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from llamachat.api.outputs import Floats
from llamachat.api.tokenizer import require_list
from llamachat.checks import require_number, require_whole, shown
from llamachat.core.spec import HeadKind
from llamachat.errors import LlamachatError, UsageError
from llamachat.generation import classifier, extractor, tagger
from llamachat.generation.classifier import Classification, Classifier
from llamachat.generation.embedding import Embedder, pool_of
from llamachat.generation.extractor import Extraction, Extractor, Question
from llamachat.generation.tagger import Span, Tagger
from llamachat.generation.texts import OVERLAP, Job, Outcome, Runner, Text
from llamachat.models.heads import require_head
from llamachat.models.load import LoadedModel

R = TypeVar("R")
MOST = 2**30


class TextReader(ABC):
    """A loaded model that reads texts. Each of several gives what it would give alone."""

    model: LoadedModel

    def classify(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        top: int | None = None,
        threshold: float = classifier.THRESHOLD,
        truncate: bool = False,
    ) -> list[Classification]:
        """The labels of each text, or pair of texts, the likeliest first (`top` of them; None: all), as probabilities; or
        values, of a model that was trained to give numbers. `threshold`: the least probability of a label that is "named"
        where a text may have several. `truncate`: what is too long for the context is cut at its end.

        Raises UsageError for a model without such a head, DoesNotFitError for a text that is too long.
        """
        self._require(classifier.HEADS, top=top)
        require_number("threshold", threshold, 0, 1, UsageError)
        made = Classifier(self.model, top, threshold, truncate)
        jobs = [made.job(_text(each, pairs=True)) for each in _listed(texts)]
        return self._read("last", jobs, made.classification)

    def tag(self, texts: Sequence[str], *, words: bool = False) -> list[list[Span]]:
        """The labelled spans of each text, of any length, with their characters. `words`: a word has the label of its first
        token. Raises UsageError for a model without such a head."""
        self._require(tagger.HEADS)
        made = Tagger(self.model, words)
        return self._read("all", [made.job(_text(each)) for each in _listed(texts)], made.spans)

    def extract(
        self,
        question: str,
        text: str,
        *,
        top: int = 1,
        window: int = extractor.WINDOW,
        overlap: int = OVERLAP,
        max_answer_len: int = extractor.LONGEST,
        null_threshold: float | None = 0.0,
    ) -> Extraction:
        """The answer to a question as a span of a text of any length, and the `top` best ones. The text is read in windows of
        so many tokens, question included. `null_threshold`: by how much the score of having no answer must be higher to be
        believed; None: never. Raises UsageError for a model without such a head."""
        self._require(extractor.HEADS, top=top, window=window, max_answer_len=max_answer_len)
        require_whole("overlap", overlap, 0, MOST, UsageError)
        made = Extractor(self.model, window, overlap, max_answer_len, null_threshold, top)
        return self._read("all", [made.job(Question(_text(question).text, _text(text).text))], made.extraction)[0]

    def embed(
        self, texts: Sequence[str], *, pool: str | None = None, normalize: bool = True, truncate: bool = False
    ) -> Floats:
        """Vectors float32 [texts, hidden_size] of plain texts, each in the frame that its tokenizer has for a text.

        pool: "mean" of all tokens' last hidden states, or that of the "last" token; None: as the model's files say, else the
        mean (as sentence-transformers). normalize: to length 1, so that products are cosines. truncate: as in `classify`.
        Raises UsageError for a text without tokens, DoesNotFitError for one over max_seq_len.
        """
        made = Embedder(self.model, pool_of(self.model, pool), normalize, truncate)
        jobs = [made.job(_text(each).text) for each in _listed(texts)]
        rows = self._read(made.rows, jobs, lambda done: made.embedded(done).vector, outputs="hidden")
        return np.stack(rows) if rows else np.empty((0, self.model.checkpoint.config.hidden_size), np.float32)

    @abstractmethod
    def take_slots(self) -> None:
        """What the cache holds is written over."""

    def _require(self, heads: Sequence[HeadKind], **counts: int | None) -> None:
        require_head(self.model.name, self.model.checkpoint.config, heads)
        for name, count in counts.items():
            if count is not None:
                require_whole(name, count, 1, MOST, UsageError)

    def _read(
        self, rows: Literal["last", "all"], jobs: Sequence[Job], result: Callable[[Outcome], R], **outputs: Any
    ) -> list[R]:
        self.take_slots()
        found = list[R]()
        for outcome in Runner(self.model, rows, **outputs).run(iter(jobs)):
            if isinstance(outcome, LlamachatError):
                raise outcome
            found.append(result(outcome))
        return found


def _listed(texts: Sequence[str | tuple[str, str]]) -> Sequence[str | tuple[str, str]]:
    require_list(texts, "texts", "put it into a list")
    return texts


def _text(given: str | tuple[str, str], pairs: bool = False) -> Text:
    parts = (given,) if isinstance(given, str) else tuple(given) if pairs and isinstance(given, (tuple, list)) else ()
    if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
        raise UsageError(f"{shown(given)} is no text" + " or pair of texts" * pairs, "nothing was computed")
    return Text(*parts)
