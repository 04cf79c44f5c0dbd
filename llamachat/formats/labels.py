"""What the rows of a head mean: config.json's id2label, label2id, num_labels and problem_type, and which class it names."""

from dataclasses import dataclass
from typing import Literal, get_args

from llamachat.checks import LARGEST, is_whole
from llamachat.core.spec import HEADS, HeadKind
from llamachat.system.metadata import Fields, names

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
PROBLEMS: dict[str, Problem] = {problem: problem for problem in get_args(Problem)}
CLASSES: dict[HeadKind, str] = {  # of transformers, behind the family's name
    "next_token": "ForCausalLM",
    "sequence_labels": "ForSequenceClassification",
    "token_labels": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "none": "Model",
}
KEYS = names("id2label label2id num_labels problem_type token_classification_bias")  # of a model with such a head
SPAN = ("start", "end")  # the rows of a head of that kind
USUAL = 2  # labels where nothing is said of them, as in transformers


@dataclass(frozen=True)
class Labels:
    """Names of a head's rows, in order; `problem`: what the numbers are, None where the configuration leaves it open."""

    names: tuple[str, ...]
    problem: Problem | None = None


def head_kind(fields: Fields) -> HeadKind:
    """Which head the class has that config.json names, if any; that of a causal model where it names no class known."""
    given = fields.get("architectures")
    architecture = str(given[0]) if isinstance(given, list) and given else ""
    return next((kind for kind, name in CLASSES.items() if architecture.endswith(name)), "next_token")


def read_labels(fields: Fields, head: HeadKind) -> Labels | None:
    """None for a head that does not classify, of which these keys say nothing. Raises ConfigError."""
    if head in ("next_token", "none"):
        return None
    fields.neutral("token_classification_bias", HEADS["token_labels"][1])
    named = _names(fields)
    if head == "span":
        return Labels(SPAN)
    problem = None if fields.get("problem_type") is None else fields.choice("problem_type", PROBLEMS)
    return Labels(named, problem)


def _names(fields: Fields) -> tuple[str, ...]:
    """id2label in the order of its ids, which label2id must not contradict; writers often leave names in it of old."""
    named, count = fields.inside("id2label"), fields.get("num_labels")
    if named is None:
        count = fields.whole("num_labels", USUAL, 1, LARGEST["vocab_size"])
        found = tuple(f"LABEL_{number}" for number in range(count))
    else:
        found = tuple(named.text(str(number)) for number in range(len(named.raw)))
        named.finish(())
        if count not in (None, len(found)):
            fields.refuse("num_labels", f"{len(found)}, as id2label has so many")
    ids = fields.inside("label2id")
    for name, id in ids.raw.items() if ids else ():
        if not is_whole(id) or (name in found and found[id : id + 1] != (name,)):
            fields.refuse("label2id", "id2label the other way round")
    return found
