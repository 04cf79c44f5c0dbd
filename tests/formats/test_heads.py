"""Heads that classify, as transformers saves them: every family's logits, and what their configuration says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_files import IDS, SHAPE, model_of, save_family_gguf
from headed import HEADED, headed, rows_of
from safetensors.torch import load_file, save_file

from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.core.model import PlainEngine
from llamachat.engines.native.engine import NativeEngine, supports
from llamachat.engines.torch.engine import TorchEngine
from llamachat.errors import ConfigError, FormatError, ModelError
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.labels import Labels
from quantize.convert import convert
from quantize.recipe import Recipe


def ours(path: Path, engine: Any = TorchEngine, **options: Any) -> Any:
    checkpoint = open_checkpoint(path)
    built = engine.build(checkpoint.config, checkpoint.tensors(), slots=64, **options)
    rows = advance(built, Cache(64), IDS, "all")
    return rows[-1] if checkpoint.config.head == "sequence_labels" else rows


@pytest.mark.parametrize(("case", "head"), HEADED)
def test_logits_are_transformers(case: str, head: str, tmp_path: Path) -> None:
    model = headed(case, head, **({} if head == "span" else {"num_labels": 3}))
    model.save_pretrained(tmp_path)
    checkpoint, right = open_checkpoint(tmp_path), rows_of(model, IDS)
    assert checkpoint.config.head == head
    assert checkpoint.labels == Labels(("start", "end") if head == "span" else ("LABEL_0", "LABEL_1", "LABEL_2"))
    np.testing.assert_allclose(ours(tmp_path, dtype="float32"), right, atol=1e-4, rtol=1e-4)
    assert supports(checkpoint.config, checkpoint.index()) is None
    np.testing.assert_allclose(ours(tmp_path, NativeEngine, kv="float32", threads=2), right, atol=2e-4, rtol=1e-4)


def test_every_head_of_every_family_was_there() -> None:
    heads = [head for _, head in HEADED]
    assert [heads.count(head) for head in ("sequence_labels", "token_labels", "span")] == [15, 12, 8]


def saved(folder: Path, head: str = "sequence_labels", case: str = "llama", **changes: Any) -> Path:
    headed(case, head, **changes).save_pretrained(folder)
    return folder


def reconfigured(folder: Path, **changes: Any) -> Path:
    """None takes a key out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


@pytest.mark.parametrize("head", ["sequence_labels", "token_labels", "span"])
def test_the_tensors_show_the_head_where_no_class_is_named(head: str, tmp_path: Path) -> None:
    saved(tmp_path, head)
    for architectures in (None, ["LlamaForCausalLM"]):
        checkpoint = open_checkpoint(reconfigured(tmp_path, architectures=architectures))
        assert checkpoint.config.head == head


def test_old_names_are_read(tmp_path: Path) -> None:
    saved(tmp_path, "token_labels", "phi3")
    right = ours(tmp_path, dtype="float32")
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("score.", "classifier."): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    assert np.array_equal(ours(tmp_path, dtype="float32"), right)


def test_of_a_model_that_sees_pictures_the_head_is_read_too(tmp_path: Path) -> None:
    text = model_of("gemma3").config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, id2label={0: "a", 1: "b", 2: "c"})
    torch.manual_seed(0)
    model = transformers.Gemma3ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    assert open_checkpoint(tmp_path).labels == Labels(("a", "b", "c"))
    np.testing.assert_allclose(ours(tmp_path, dtype="float32"), rows_of(model, IDS), atol=1e-4, rtol=1e-4)


NAMED = {"0": "no", "1": "yes\x1b[31m", "2": "no"}


def test_labels_are_what_the_configuration_says(tmp_path: Path) -> None:
    saved(tmp_path, num_labels=3)
    checkpoint = open_checkpoint(reconfigured(tmp_path, id2label=NAMED, problem_type="regression"))
    labels = checkpoint.labels
    assert not {"id2label", "problem_type", "architectures"} & {*checkpoint.ignored}
    assert labels == Labels(("no", "yes\x1b[31m", "no"), "regression")
    old = {"LABEL_0": 0, "LABEL_7": 7}
    assert open_checkpoint(reconfigured(tmp_path, label2id=old, num_labels=3)).labels == labels
    config = reconfigured(saved(tmp_path / "usual"), id2label=None, label2id=None)
    assert open_checkpoint(config).labels == Labels(("LABEL_0", "LABEL_1"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("id2label", {"0": "a", "2": "b", "1": 5}, "1 is 5; expected is a string"),
        ("id2label", {"0": "a", "1": "b", "3": "c"}, "id2label: 2 is missing"),
        ("id2label", ["a", "b", "c"], "id2label is"),
        ("num_labels", 4, "num_labels is 4; expected is 3, as id2label has so many"),
        ("id2label", {str(number): "x" for number in range(70000)}, "expected is at most 65536 labels"),
        ("label2id", {"LABEL_0": 1}, "label2id is"),
        ("label2id", {"LABEL_0": "0"}, "label2id is"),
        ("problem_type", "ranking", "problem_type is 'ranking'; expected is one of single_label_classification"),
        ("token_classification_bias", False, "token_classification_bias is False"),
    ],
)
def test_what_labels_cannot_be_is_an_error(key: str, value: Any, said: str, tmp_path: Path) -> None:
    reconfigured(saved(tmp_path, num_labels=3), **{key: value})
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_labels_of_a_model_that_predicts_tokens_say_nothing(tmp_path: Path) -> None:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(reconfigured(tmp_path, id2label={"5": "x"}, problem_type="?", num_labels=9))
    assert checkpoint.labels is None and {"id2label", "problem_type", "num_labels"} <= {*checkpoint.ignored}


def test_no_more_labels_are_named_than_can_be(tmp_path: Path) -> None:
    reconfigured(saved(tmp_path), id2label=None, label2id=None, num_labels=2**24)
    with pytest.raises(ConfigError, match="num_labels is 16777216; expected is a whole number from 1 to 65536"):
        open_checkpoint(tmp_path)


def test_a_head_of_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    reconfigured(saved(tmp_path, num_labels=3), id2label={"0": "a"}, label2id=None)
    with pytest.raises(FormatError, match=r"score\.weight.* is \(3, 64\).*the configuration asks for \(1, 64\)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4-gptq", "bnb-int8"])
@pytest.mark.parametrize("head", ["sequence_labels", "token_labels"])
def test_a_converted_folder_keeps_head_and_labels(head: str, scheme: str, tmp_path: Path) -> None:
    saved(tmp_path / "hf", head, id2label={0: "a\x1b]0;x\x07", 1: "b", 2: "c"}, problem_type="regression")
    text = [IDS] * 4 if scheme == "int4-gptq" else None
    convert(open_checkpoint(tmp_path / "hf"), tmp_path / "out", Recipe(scheme), calibration=text)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.labels == open_checkpoint(tmp_path / "hf").labels
    assert checkpoint.index()["score.weight"].packing is None
    assert json.loads((tmp_path / "out/config.json").read_text())["id2label"]["1"] == "b"
    right = ours(tmp_path / "out", PlainEngine)
    np.testing.assert_allclose(ours(tmp_path / "out", dtype="float32"), right, atol=1e-3 * np.abs(right).max())
    np.testing.assert_allclose(ours(tmp_path / "out", NativeEngine, threads=2), right, atol=0.1 * np.abs(right).max())


def test_a_head_is_coded_where_that_is_asked_for(tmp_path: Path) -> None:
    saved(tmp_path / "hf", num_labels=3)
    convert(open_checkpoint(tmp_path / "hf"), tmp_path / "out", Recipe("int4", head="int8"))
    packing = open_checkpoint(tmp_path / "out").index()["score.weight"].packing
    assert packing is not None and packing.bits == 8
    right = ours(tmp_path / "out", PlainEngine)
    np.testing.assert_allclose(ours(tmp_path / "out", NativeEngine, threads=2), right, atol=0.1 * np.abs(right).max())


@pytest.mark.usefixtures("bitsandbytes_as_stored")
@pytest.mark.parametrize(
    ("scheme", "rounding"), [("bnb-nf4", 0.01), ("bnb-int8", 0.3)]
)  # its activations have 8 bits too
def test_transformers_loads_what_bitsandbytes_packed_and_gives_our_logits(
    scheme: str, rounding: float, tmp_path: Path
) -> None:
    saved(tmp_path / "hf", num_labels=3)
    convert(open_checkpoint(tmp_path / "hf"), tmp_path / "out", Recipe(scheme))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(theirs.score) is torch.nn.Linear and theirs.config.num_labels == 3
    right = rows_of(theirs, IDS)
    np.testing.assert_allclose(ours(tmp_path / "out", dtype="float32"), right, atol=rounding * np.abs(right).max())


def test_a_head_found_by_its_tensors_is_named_in_the_converted_folder(tmp_path: Path) -> None:
    reconfigured(saved(tmp_path / "hf", "span"), architectures=None)
    convert(open_checkpoint(tmp_path / "hf"), tmp_path / "out", Recipe("int8"))
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["LlamaForQuestionAnswering"]
    with pytest.raises(ModelError, match="in two ways"):
        convert(open_checkpoint(tmp_path / "hf"), tmp_path / "bnb", Recipe("bnb-int8"))


@pytest.mark.parametrize("labels", [1, 2])
def test_a_gguf_file_may_have_a_classifier(labels: int, tmp_path: Path) -> None:
    model, said = headed("qwen3", "sequence_labels", num_labels=labels), {"pooling_type": 4}
    path = save_family_gguf(model, "qwen3", tmp_path / "model.gguf", **said)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.config.head, checkpoint.config.num_labels, checkpoint.pooling) == (
        "sequence_labels",
        labels,
        None,
    )
    assert checkpoint.labels == Labels(
        ("LABEL_0", "LABEL_1")[:labels], None if labels == 1 else "single_label_classification"
    )
    np.testing.assert_allclose(ours(path, dtype="float32"), rows_of(model, IDS), atol=1e-4, rtol=1e-4)
    convert(checkpoint, tmp_path / "out", Recipe("int8"))
    assert open_checkpoint(tmp_path / "out").labels == checkpoint.labels
    named = {"classifier.output_labels": ["yes", "no"]}
    path = save_family_gguf(model, "qwen3", tmp_path / "named.gguf", **said, **named)
    if labels == 2:
        assert open_checkpoint(path).labels == Labels(("yes", "no"), "single_label_classification")
        return
    alone = save_family_gguf(model, "qwen3", tmp_path / "one.gguf", **said, **{"classifier.output_labels": ["yes"]})
    assert open_checkpoint(alone).labels == Labels(("yes",))
    with pytest.raises(ConfigError, match=r"classifier\.output_labels is \['yes', 'no'\]; expected is a list of 1"):
        open_checkpoint(path)


def test_a_gguf_file_with_another_classifier_is_refused(tmp_path: Path) -> None:
    model = headed("qwen3", "sequence_labels")
    with pytest.raises(ConfigError, match="pooling_type is 1"):
        open_checkpoint(save_family_gguf(model, "qwen3", tmp_path / "mean.gguf", pooling_type=1))
    model.score.bias = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(FormatError, match=r"holds 'score\.bias'"):
        open_checkpoint(save_family_gguf(model, "qwen3", tmp_path / "bias.gguf", pooling_type=4))
