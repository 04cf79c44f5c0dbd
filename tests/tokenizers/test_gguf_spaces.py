"""Gemma's GGUF vocabularies: runs of spaces that the user defined are written as spaces there, and found before anything else."""

from llamachat.tokenizers.open import from_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
PIECES = [
    ("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", UNKNOWN), ("▁", NORMAL), ("a", NORMAL),
    ("▁a", NORMAL), ("  ", USER_DEFINED), ("   ", USER_DEFINED), ("\n", USER_DEFINED),
    *((f"<0x{byte:02X}>", BYTE) for byte in range(256)),
]  # fmt: skip


def test_a_run_of_spaces_is_the_longest_token_of_it() -> None:
    tokens, types = zip(*PIECES, strict=True)
    keys = {
        "model": "llama", "tokens": list(tokens), "token_type": list(types), "scores": [-float(i) for i in range(len(tokens))],
        "bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "add_space_prefix": False,
    }  # fmt: skip
    tokenizer = from_gguf({f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    assert tokenizer.encode("a    a\n  a") == [5, 8, 6, 9, 7, 5]
    assert b"".join(map(tokenizer.token_bytes, [5, 8, 6, 9, 7, 5])) == b"a    a\n  a"
