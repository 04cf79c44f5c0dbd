"""Stand-ins for other programs' stores of models, laid out as these lay them out."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

COMMIT = "0123456789abcdef0123456789abcdef01234567"
KIND = "application/vnd.ollama.image."


def write_header(path: Path, arch: str = "llama", **keys: Any) -> Path:
    """A GGUF file that says what it is, as converters write it, with a vocabulary and one tensor of no use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), arch)
    shape = {"block_count": 2, "context_length": 4096, "embedding_length": 64, "attention.head_count": 4}
    for key, value in {**shape, "attention.head_count_kv": 2, **keys}.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key if key.startswith("general.") else f"{arch}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{i}" for i in range(100)])
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ollama(models: Path, name: str, weights: Path, manifests: str = "manifests", **layers: Any) -> Path:
    """HOST/NAMESPACE/MODEL/TAG in ollama's folder; `layers` by kind: text, or what becomes JSON. Returns the manifest."""
    (models / "blobs").mkdir(parents=True, exist_ok=True)
    told = [_layer(models, "model", weights.read_bytes())]
    told += [
        _layer(models, kind, (value if isinstance(value, str) else json.dumps(value)).encode())
        for kind, value in layers.items()
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": _layer(models, "config", b"{}") | {"mediaType": "application/vnd.docker.container.image.v1+json"},
        "layers": told,
    }
    return _written(models / manifests / name, manifest)


def _layer(models: Path, kind: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (models / "blobs" / f"sha256-{digest}").write_bytes(data)
    return {"mediaType": KIND + kind, "digest": f"sha256:{digest}", "size": len(data)}


def _written(path: Path, table: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return path


def hub_cache(hub: Path, repository: str, files: Mapping[str, Path | bytes], revision: str = "main") -> Path:
    """A repository in the Hugging Face cache, its snapshot links to blobs. Returns the snapshot."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    for inner in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def llama_cpp(cache: Path, repository: str, tag: str, file: str, weights: Path) -> Path:
    """A download of llama.cpp's, with its manifest. Returns the GGUF file."""
    cache.mkdir(parents=True, exist_ok=True)
    manifest = cache / f"manifest={repository.replace('/', '=')}={tag}.json"
    _written(manifest, {"ggufFile": {"rfilename": file, "lfs": {"size": weights.stat().st_size}}})
    path = cache / f"{repository}/{file}".replace("/", "_")
    path.write_bytes(weights.read_bytes())
    return path
