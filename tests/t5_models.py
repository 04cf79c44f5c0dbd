"""Tiny random T5s of transformers, as folders and as GGUF files, with a tokenizer of words and letters made on the spot."""

import json
import string
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

VOCAB_SIZE = 128
SHAPE = {  # heads of 8, so that all of them together are not as wide as the model; more layers in the decoder
    "vocab_size": VOCAB_SIZE,
    "d_model": 64,
    "d_kv": 8,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
UNTIED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
CASES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "t5": (T5Config, T5ForConditionalGeneration, {}),
    "v1.1": (T5Config, T5ForConditionalGeneration, UNTIED),
    "mt5": (MT5Config, MT5ForConditionalGeneration, {"d_kv": 16, "num_decoder_layers": 1}),
    "few buckets": (
        T5Config,
        T5ForConditionalGeneration,
        {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "feed_forward_proj": "gated-silu"},
    ),
    "exact gelu": (T5Config, T5ForConditionalGeneration, {"feed_forward_proj": "gelu", "num_decoder_layers": 1}),
}


def t5_model(case: str = "v1.1", **changes: Any) -> Any:
    """Weights such that answers differ with the source; the head is another matrix than the embedding where transformers
    would keep it from a file that has both."""
    kind, architecture, own = CASES[case]
    torch.manual_seed(0)
    model = architecture(kind(**(SHAPE | own | changes))).eval()
    for name, weight in model.named_parameters():
        if "layer_norm" in name:
            torch.nn.init.normal_(weight, mean=1.0, std=0.1)
        elif "relative_attention_bias" in name:
            torch.nn.init.normal_(weight)
        elif "EncDecAttention" in name:
            weight.data *= 3
    if case in ("v1.1", "mt5"):
        model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape) * 0.3)
    return model


def t5_logits(model: Any, source: list[int], ids: list[int]) -> NDArray[np.float32]:
    """transformers', [T, vocabulary]."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([ids]))
    logits: NDArray[np.float32] = out.logits[0].numpy()
    return logits


def save_t5(folder: Path, case: str = "v1.1", **changes: Any) -> Path:
    """A folder as transformers saves it, with a tokenizer."""
    t5_model(case, **changes).save_pretrained(folder)
    save_words(folder)
    return folder


def save_words(folder: Path) -> None:
    """A unigram tokenizer.json, whose template puts </s> behind a text, as T5's does."""
    words = ["▁the", "▁house", "▁is", "▁small", "▁das", "▁Haus", "translate", "▁to"]
    letters = ["▁", *string.ascii_letters, *string.digits, *".,:;!?'\"()[]{}-+*/=_"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0)]
    vocabulary += [(word, -3.0 - len(word) / 100) for word in words] + [(letter, -6.0) for letter in letters]
    vocabulary += [(f"▁w{number}", -5.0) for number in range(VOCAB_SIZE - len(vocabulary))]
    library = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    library.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    library.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    library.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    library.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<pad>", "</s>", "<unk>")]
    )
    library.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def save_t5_gguf(model: Any, path: Path, quant: str = "F32", **metadata: Any) -> Path:
    """As llama.cpp's converter writes it; `metadata` goes before, and None leaves a key out."""
    writer, config = gguf.GGUFWriter(path, "t5"), model.config
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": 512,
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_ff,
        "block_count": config.num_layers,
        "decoder_block_count": config.num_decoder_layers,
        "attention.head_count": config.num_heads,
        "attention.key_length": config.d_kv,
        "attention.value_length": config.d_kv,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
        "attention.relative_buckets_count": config.relative_attention_num_buckets,
        "decoder_start_token_id": config.decoder_start_token_id,
    }
    keys = {f"t5.{key}": value for key, value in values.items()} | {"tokenizer.ggml.model": "no_vocab"}
    keys |= {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.padding_token_id": 0} | metadata
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, list | bytes):
            writer.add_array(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            (writer.add_float32 if isinstance(value, float) else writer.add_string)(key, value)
    for name, data in gguf_tensors(model).items():
        if data.ndim == 1 or "rel_b" in name or quant == "F32":
            writer.add_tensor(name, data)
        else:
            kind = gguf.GGMLQuantizationType[quant]
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_stored(model: Any, quant: str) -> Any:
    """The model with the values that its matrices have in a file of this type."""
    kind = gguf.GGMLQuantizationType[quant]
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "relative" not in name:
            rounded = gguf.quants.dequantize(gguf.quants.quantize(weight.detach().numpy(), kind), kind)
            weight.data = torch.from_numpy(rounded.reshape(weight.shape).astype(np.float32))
    return model


def gguf_tensors(model: Any) -> dict[str, NDArray[np.float32]]:
    """By llama.cpp's names, which the gguf package knows; a tied head is written once."""
    blocks = max(model.config.num_layers, model.config.num_decoder_layers)
    names, found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, blocks), dict[str, NDArray[np.float32]]()
    tied = torch.equal(model.lm_head.weight, model.shared.weight)
    for name, weight in model.state_dict().items():
        if name.endswith("embed_tokens.weight") or (tied and name == "lm_head.weight"):
            continue
        found[str(names.get_name(name, try_suffixes=(".weight",)))] = weight.detach().numpy()
    return found
