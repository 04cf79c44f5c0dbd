"""Greedy text beside llama.cpp's on a real GGUF file: python tools/measure_greedy.py FILE PEER_PYTHON [--exact] [--save JSON].

PEER_PYTHON is the interpreter of an environment with llama-cpp-python. Ten prompts are continued by 64 tokens there, and our
torch engine says in float32 what it would have taken at each place. Where it parts, both margins are printed, in nats: how far
each one's choice is ahead of its second. llama.cpp rounds activations to 8 bits for packed weights, which moves logits by
tenths; --exact first writes the file anew with its weights unpacked to F32, and what is left is the arithmetic itself.
--save keeps what llama.cpp said, as tests/engines/gemma3_texts.json has it.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.engines.torch.engine import TorchEngine
from llamachat.formats.detect import open_checkpoint

CONTEXT, TOKENS = 256, 64
PROMPTS = (
    "The capital of France is", "Once upon a time, there was a little", "def fibonacci(n):\n    ",
    "The three laws of thermodynamics are", "Water boils at 100 degrees because", "In 1969, Neil Armstrong",
    "Die Hauptstadt von Deutschland ist", "A recipe for pancakes: take two eggs,", "The quick brown fox",
    "To be, or not to be, that is",
)  # fmt: skip
ASK = """
import json, sys
import numpy as np
from llama_cpp import Llama
job, found = json.load(sys.stdin), []
model = Llama(job["file"], n_ctx=job["context"], type_k=0, type_v=0, logits_all=True, verbose=False)
for prompt in job["prompts"]:
    ids = model.tokenize(prompt.encode(), add_bos=True, special=False)
    model.reset()
    model.eval(ids)
    text, margins = [], []
    for _ in range(job["tokens"]):
        row = model.scores[model.n_tokens - 1]
        second, first = np.sort(row)[-2:]
        text.append(int(row.argmax()))
        margins.append(float(first - second))
        model.eval(text[-1:])
    found.append({"ids": ids, "text": text, "margins": margins})
json.dump(found, sys.stdout)
"""


def unpacked(file: Path, out: Path) -> Path:
    """The same model with every tensor in F32."""
    import gguf

    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape(tensor.shape[::-1].tolist()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def measure(file: Path, python: str, save: Path | None) -> None:
    checkpoint = open_checkpoint(file)
    tokenizer, job = (
        checkpoint.tokenizer(),
        {"file": str(file), "context": CONTEXT, "tokens": TOKENS, "prompts": PROMPTS},
    )
    asked = subprocess.run([python, "-c", ASK], input=json.dumps(job), text=True, check=True, capture_output=True)
    engine = TorchEngine.build(checkpoint.config, checkpoint.tensors(), slots=CONTEXT, dtype="float32")
    if save is not None:
        rounded = [
            {**said, "margins": [round(margin, 4) for margin in said["margins"]]} for said in json.loads(asked.stdout)
        ]
        save.write_text("[\n" + ",\n".join(map(json.dumps, rounded)) + "\n]\n")
    for prompt, theirs in zip(PROMPTS, json.loads(asked.stdout), strict=True):
        bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        assert bos + tokenizer.encode(prompt) == theirs["ids"], "tokens differ"
        print(f"{prompt!r:44} {compared(engine, theirs)}")


def compared(engine: TorchEngine, theirs: dict[str, Any]) -> str:
    """Where our choice is another one for the first time, after the same tokens."""
    ids, text = theirs["ids"], theirs["text"]
    rows = advance(engine, Cache(CONTEXT), ids + text, "all")[len(ids) - 1 : -1]
    place = next((i for i, token in enumerate(rows.argmax(1).tolist()) if token != text[i]), None)
    if place is None:
        return "the same"
    second, first = np.sort(rows[place])[-2:]
    return f"parts at {place}: our margin {first - second:.3f}, llama.cpp's {theirs['margins'][place]:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("python")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as where:
        measure(
            unpacked(given.file, Path(where) / "exact.gguf") if given.exact else given.file, given.python, given.save
        )
