"""Tiny random models with heads that classify, of every family that transformers has them for."""

from pathlib import Path
from typing import Any

import torch
import transformers
from checkpoints import save_tokenizer
from family_files import CASES, SHAPE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CLASSES = {
    "sequence_labels": "ForSequenceClassification",
    "token_labels": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}
KINDS = {case: CASES[case][0] for case in CASES} | {"llama": "Llama", "qwen2": "Qwen2"}
HEADED = [
    (case, head) for case, kind in KINDS.items() for head, name in CLASSES.items() if hasattr(transformers, kind + name)
]


def headed(case: str, head: str, **changes: Any) -> Any:
    """Norms, biases and heads say something of their place."""
    settings = CASES[case][1] if case in CASES else {}
    config = getattr(transformers, f"{KINDS[case]}Config")(**(SHAPE | settings | changes))
    torch.manual_seed(2)
    model = getattr(transformers, KINDS[case] + CLASSES[head])(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith(("sinks", "bias")):
            offset = "bias" in name or KINDS[case].startswith("Gemma")
            torch.nn.init.normal_(weight, mean=float(not offset), std=0.3)
    return model


def save_headed(folder: Path, head: str, labels: list[str], case: str = "llama", **changes: Any) -> Any:
    """A folder of a small model with these labels, and sentencepiece's tokenizer. Its vocabulary has 320 tokens."""
    named = {"id2label": dict(enumerate(labels)), "label2id": {name: id for id, name in enumerate(labels)}}
    model = headed(case, head, **({"vocab_size": 320} | (named if head != "span" else {}) | changes))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def rows_of(model: Any, ids: list[int]) -> Any:
    """transformers' logits for one text: [n], or [T, n] of all tokens."""
    with torch.no_grad():
        out = model(torch.tensor([ids]))
    if "start_logits" in out:
        return torch.stack((out.start_logits[0], out.end_logits[0]), -1).numpy()
    return out.logits[0].numpy()


TEXT = "Ada met Charles in London , and they walked to the old house in Paris . Ärger über 東京 und más"


def fast_tokenizer(folder: Path, single: str = "<s> $A", pair: str = "<s> $A <s> $B", **settings: Any) -> Any:
    """Byte-level, with some words, as transformers saves it; what it puts around a text is its template."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = ["<s>", "</s>", "[GMASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=marks, initial_alphabet=alphabet, vocab_size=320, show_progress=False)
    library.train_from_iterator([TEXT], trainer)
    ids = [(mark, i) for i, mark in enumerate(marks)]
    library.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>", **settings)
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
