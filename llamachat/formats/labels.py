"""What the rows of a head mean: config.json's id2label, label2id, num_labels and problem_type, and which class it names."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, get_args

from llamachat.checks import is_whole
from llamachat.core.spec import HEADS, HeadKind, ModelSpec
from llamachat.errors import ConfigError
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
RANK = 4  # llama.cpp's pooling_type of models with a classifier
MOST = 1 << 16  # labels; more than any model has, and few enough to be named one by one
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


def classifying(names: Collection[str]) -> HeadKind | None:
    """The head that tensors of these names are of, which stand in place of a causal model's."""
    if "lm_head.weight" in names:
        return None
    if "score.weight" in names:
        return "token_labels" if "score.bias" in names else "sequence_labels"
    return "span" if "qa_outputs.weight" in names else None


def with_head(spec: ModelSpec, head: HeadKind, rows: int) -> ModelSpec:
    """The model with a head that classifies in place of its own; transformers neither scales nor caps what that gives."""
    return replace(spec, head=head, num_labels=rows, logit_multiplier=1.0, logit_softcap=None)


def unnamed(head: HeadKind, rows: int) -> Labels:
    """Of a head that comes without names."""
    return Labels(SPAN if head == "span" else default_names(rows))


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
        count = fields.whole("num_labels", USUAL, 1, MOST)
        found = default_names(count)
    else:
        if len(named.raw) > MOST:
            fields.refuse("id2label", f"at most {MOST} labels")
        found = tuple(named.text(str(number)) for number in range(len(named.raw)))
        named.finish(())
        if count not in (None, len(found)):
            fields.refuse("num_labels", f"{len(found)}, as id2label has so many")
    ids = fields.inside("label2id")
    for name, id in ids.raw.items() if ids else ():
        if not is_whole(id) or (name in found and found[id : id + 1] != (name,)):
            fields.refuse("label2id", "id2label the other way round")
    return found


def gguf_labels(own: Fields, arch: str, rows: int) -> Labels:
    """Of a GGUF file whose classifier has so many rows; llama.cpp makes shares of them, as of single labels. `own` has one text
    for a list of the same ones. Raises ConfigError."""
    own.neutral(f"{arch}.pooling_type", RANK)
    if not 1 <= rows <= MOST:
        raise ConfigError(f"{own.where}: the classifier has {rows} rows", remedy=f"at most {MOST} can be read")
    key = f"{arch}.classifier.output_labels"
    same = isinstance(own.raw.get(key), str)
    found = (own.text(key),) * rows if same else own.strings(key, default_names(rows))
    if len(found) != rows:
        own.refuse(key, f"a list of {rows}, as the classifier has so many rows")
    return Labels(found, None if rows == 1 else "single_label_classification")


def default_names(count: int) -> tuple[str, ...]:
    """transformers', where nothing is said."""
    return tuple(f"LABEL_{number}" for number in range(count))
