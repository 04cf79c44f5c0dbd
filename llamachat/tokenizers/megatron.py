"""Megatron-LM's SentencePieceTokenizer: a sentencepiece model with tokens of its own behind it. Source: its tokenizer.py."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from llamachat.tokenizers import spm
from llamachat.tokenizers.side import of_config
from llamachat.tokenizers.text_tokenizer import TextTokenizer, library_errors, read

FILES = ("tokenizer.model", "spiece.model")
OWN = ("<CLS>", "<SEP>", "<EOD>", "<MASK>")


def config(file: Path, extra_ids: int) -> dict[str, Any]:
    """What a tokenizer_config.json would have to say for `file` to give Megatron's ids. Raises FormatError.

    Its own tokens come first, then those for padding, beginning and end that the model lacks, then `extra_ids` sentinels.
    """
    with library_errors(str(file)):
        from sentencepiece import SentencePieceProcessor

        library = SentencePieceProcessor(model_proto=read(file))
        named = dict(_named(library))
        sentinels = [f"<extra_id_{i}>" for i in range(extra_ids)]
        behind = count(library.vocab_size())
        decoder = dict[str, dict[str, Any]]()
        for name in dict.fromkeys((*OWN, *named.values(), *sentinels)):
            id = library.piece_to_id(name)
            known = library.id_to_piece(id) == name
            decoder[str(id if known else next(behind))] = {"content": name, "special": True}
    return {
        "tokenizer_class": "MegatronSentencePieceTokenizer",
        "add_bos_token": False,
        "legacy": True,  # what follows a control token is a text of its own
        **named,
        "added_tokens_decoder": decoder,
    }


def _named(library: Any) -> Iterator[tuple[str, str]]:
    for key, id, absent in (
        ("pad_token", library.pad_id(), "<PAD>"),
        ("bos_token", library.bos_id(), "<BOS>"),
        ("eos_token", library.eos_id(), "<EOS>"),
    ):
        yield key, library.id_to_piece(id) if id >= 0 else absent


def named_ids(file: Path, extra_ids: int) -> tuple[int, int, int]:
    """What a text begins with, what it ends with, and padding. Raises FormatError."""
    told = config(file, extra_ids)
    ids = {entry["content"]: int(id) for id, entry in told["added_tokens_decoder"].items()}
    return ids[told["bos_token"]], ids[told["eos_token"]], ids[told["pad_token"]]


def open_megatron(file: Path, extra_ids: int) -> TextTokenizer:
    """Raises FormatError."""
    return spm.from_proto(read(file), of_config(config(file, extra_ids), {}, {}), str(file))
