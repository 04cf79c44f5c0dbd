"""Tokenizers for tests: the real ones, Meta's own code, and small ones made here."""

import importlib
import json
import sys
import types
from collections.abc import Callable, Sequence
from enum import Enum
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from unittest.mock import MagicMock

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from llamachat.core.dialog import Message
from llamachat.core.tokenizer import Tokenizer as OurTokenizer
from llamachat.tokenizers.open import open_folder


def gpt2_metadata(**changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary of 258 tokens."""
    tokens = [*byte_tokens(), "ab", "<|end|>"]
    values = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": tokens,
        "token_type": [1] * 257 + [3],
        "merges": ["a b"],
        "eos_token_id": 257,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def smollm2_library(metadata: dict[str, Any]) -> Tokenizer:
    """SmolLM2's tokenizer as its authors published it in tokenizer.json: single digits, then GPT-2's words."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    library = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in tokens[:17]])
    return library


def meta_chat_format(package: Path) -> Any:
    """Meta's own ChatFormat and Tokenizer, without what they need for pictures and tools."""

    class Role(Enum):
        system, user, assistant, tool = "system", "user", "assistant", "tool"

    item = type("RawItem", (), {})
    stub = MagicMock(Role=Role, RawTextItem=item, RawMediaItem=item)
    saved = {
        name: sys.modules.get(name) for name in ("PIL", "llama_models.datatypes", "llama_models.llama3.tool_utils")
    }
    sys.modules.update(dict.fromkeys(saved, stub))
    sys.path.insert(0, str(package))
    try:
        chat_format = importlib.import_module("llama_models.llama3.chat_format")
        tokenizer = importlib.import_module("llama_models.llama3.tokenizer")
    finally:
        sys.path.remove(str(package))
        for name, module in saved.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    return chat_format.ChatFormat(tokenizer.Tokenizer(package / "llama_models/llama3/tokenizer.model"))


def meta_message(role: str, content: str) -> Any:
    """What Meta's ChatFormat takes for a message."""
    return types.SimpleNamespace(role=role, content=content, tool_calls=[], context=None, stop_reason=None)


def spm_metadata(model: Path, **changes: Any) -> dict[str, Any]:
    """GGUF metadata of a sentencepiece model, as llama.cpp's converter writes it."""
    library = SentencePieceProcessor(model_file=str(model))
    size = library.vocab_size()
    kinds = {library.is_unknown: 2, library.is_control: 3, library.is_unused: 5, library.is_byte: 6}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [library.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": [library.get_score(i) for i in range(size)],
        "tokenizer.ggml.token_type": [next((k for test, k in kinds.items() if test(i)), 1) for i in range(size)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }


def byte_tokens() -> list[str]:
    """One character a byte, as GPT-2 writes them."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level_json(*specials: str, merges: tuple[tuple[str, str], ...] = (), **settings: Any) -> Tokenizer:
    """A Hugging Face tokenizer of single bytes and a few merges."""
    tokens = [*byte_tokens(), *(a + b for a, b in merges)]
    library = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges), **settings))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return library


def spaced_json(scheme: str, *specials: str, merges: tuple[tuple[str, str], ...] = ()) -> Tokenizer:
    """A tokenizer.json in sentencepiece's manner; `scheme` is Metaspace's, or "legacy": a normalizer's prefix."""
    letters = dict.fromkeys("▁abcdehilorst<>|[]/INS.," + "".join(a + b for a, b in merges if len(a + b) == 2))
    merges = (("▁", "h"), ("h", "e"), ("▁h", "e"), ("l", "l"), *merges)
    tokens = [*specials, *(f"<0x{i:02X}>" for i in range(256)), *letters, *(a + b for a, b in merges)]
    library = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges), byte_fallback=True))
    if scheme == "legacy":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        library.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return library


def unigram_json(*specials: str) -> Tokenizer:
    """A tokenizer.json in T5's manner: its control tokens are in the vocabulary, and each word gets a space."""
    pieces = ["<unk>", *specials, "▁", *"abcdehilorst", "▁he", "ll"]
    library = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 0, False))
    spaces = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    library.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", *specials)])
    return library


def small_charsmap() -> bytes:
    """A table by which a normalizer replaces "Ａ" by "A"."""
    model = BytesIO()
    with NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write("FF21\t41\n")
        rules.flush()
        SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d e"]), model_writer=model, vocab_size=20, hard_vocab_limit=False,
            normalization_rule_tsv=rules.name, minloglevel=2, num_threads=1,
        )  # fmt: skip
    library = SentencePieceProcessor(model_proto=model.getvalue())
    assert library.normalize("Ａ").endswith("A")
    data = library.serialized_model_proto()
    start = data.index(b"user_defined\x12") + len(b"user_defined\x12")
    return bytes(data[start + 2 :][: (data[start] & 127) + (data[start + 1] << 7)])


def write_folder(folder: Path, library: Tokenizer, **config: Any) -> Path:
    """A checkpoint's folder with this tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


Both = tuple[OurTokenizer, Callable[[str, Sequence[Message]], list[int]]]


def with_reference(folder: Path, library: Tokenizer) -> Both:
    """Our tokenizer, and transformers' apply_chat_template with the same one."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>")

    def reference(template: str, messages: Sequence[Message]) -> list[int]:
        return list(
            fast.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in messages],
                chat_template=template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        )

    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    return open_folder(write_folder(folder, library, **config)), reference
