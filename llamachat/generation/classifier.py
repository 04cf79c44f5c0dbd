"""Labels of whole texts: what the rows of a sequence classifier mean.

The head's logits are those of the text's last token. transformers takes the last token that is not the padding's id, which is
the same unless a text itself ends in that id; here nothing is padded, so the last is the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np

from llamachat.checks import shown
from llamachat.core.spec import HeadKind
from llamachat.errors import UsageError
from llamachat.formats.labels import Labels
from llamachat.generation.texts import Encoded, Job, Outcome, Rows, Text, encode
from llamachat.models.load import LoadedModel

HEADS: tuple[HeadKind, ...] = ("sequence_labels",)
THRESHOLD = 0.5


class Label(TypedDict):
    """A label of a text, with what the model makes of it: a probability and the logit that it is of, or, of a model that was
    trained to give numbers (regression), the number."""

    label: str
    probability: NotRequired[float]
    logit: NotRequired[float]
    value: NotRequired[float]


class Classification(TypedDict):
    """`labels`: the best first, or as the model has them where they are numbers. `named`: those that the text has."""

    labels: list[Label]
    named: list[str]


@dataclass(frozen=True)
class Classifier:
    """A loaded model that labels texts; `top`: labels of each, None: all; `threshold`: of probabilities, where a text may have
    any number of labels; `cut`: what is too long is cut at its end."""

    model: LoadedModel
    top: int | None = None
    threshold: float = THRESHOLD
    cut: bool = False

    @property
    def labels(self) -> Labels:
        labels = self.model.checkpoint.labels
        assert labels is not None, "it was loaded as a classifier"
        return labels

    @property
    def gives_numbers(self) -> bool:
        return self.labels.problem == "regression"

    @property
    def several(self) -> bool:
        """Whether a text may have any number of labels, each by itself."""
        return several(self.labels)

    def job(self, text: Text) -> Job:
        """Raises DoesNotFitError for a text that is too long, unless it may be cut."""
        encoded = encode(self.model, text, self.cut)
        return Job(encoded, [encoded.ids])

    def classification(self, done: Outcome) -> Classification:
        """What the rows of a job mean."""
        return judged(self.labels, done.rows[0], self.top, self.threshold)

    def result(self, done: Outcome) -> dict[str, Any]:
        """The JSON object of a text."""
        encoded: Encoded = done.job.item
        usage = {"prompt_tokens": len(encoded.ids)}
        return {"model": self.model.name, **self.classification(done), "usage": usage}

    def ranking_label(self, wanted: str | None = None) -> str:
        """The label that documents are ranked by: the one wanted, or the only one. Raises UsageError."""
        names = self.labels.names
        if wanted is None and len(names) > 1:
            cause = f"{self.model.name} has {len(names)} labels, and documents are ranked by one"
            raise UsageError(cause, "nothing was ranked", f"give --label, such as {shown(names[0])}")
        if wanted is not None and wanted not in names:
            raise UsageError(
                f"{self.model.name} has no label {shown(wanted)}", "nothing was ranked", f"it has {shown([*names])}"
            )
        return wanted or names[0]

    def score(self, done: Outcome, label: str) -> Label:
        """What a text has of this label."""
        found = judged(self.labels, done.rows[0])["labels"]
        return next(each for each in found if each["label"] == label)


def judged(labels: Labels, row: Rows, top: int | None = None, threshold: float = THRESHOLD) -> Classification:
    """Logits [n] as transformers' pipeline has them: a softmax over the labels; where there is but one, or each is true or not
    by itself, a sigmoid of each; of a regression the numbers as they are."""
    if labels.problem == "regression":
        values: list[Label] = [
            {"label": name, "value": float(x)} for name, x in zip(labels.names, row.tolist(), strict=True)
        ]
        return {"labels": values[:top], "named": []}
    alone = several(labels)
    shares = sigmoid(row) if alone else softmax(row)
    order = np.argsort(-shares, kind="stable")
    found: list[Label] = [
        {"label": labels.names[at], "probability": float(shares[at]), "logit": float(row[at])} for at in order
    ]
    named = [each["label"] for each in found if each["probability"] >= threshold] if alone else [found[0]["label"]]
    return {"labels": found[:top], "named": named}


def several(labels: Labels) -> bool:
    """Whether each label holds or not by itself; so does one that is alone, which has nothing to share with."""
    return labels.problem == "multi_label_classification" or (len(labels.names) == 1 and labels.problem != "regression")


def ranked(scores: Sequence[Label]) -> list[int]:
    """Numbers of the scores, the best first; of equals the earlier one."""
    keys = [[each.get(key, 0.0) for key in ("value", "probability", "logit")] for each in scores]
    return sorted(range(len(keys)), key=lambda at: keys[at], reverse=True)


def softmax(rows: Rows) -> Rows:
    """Over the last axis, in float64."""
    shifted = np.exp(rows.astype(np.float64) - rows.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def sigmoid(rows: Rows) -> Rows:
    """In float64, without overflow."""
    wide = rows.astype(np.float64)
    return np.asarray(np.where(wide >= 0, 1, np.exp(np.minimum(wide, 0))) / (1 + np.exp(-np.abs(wide))))
