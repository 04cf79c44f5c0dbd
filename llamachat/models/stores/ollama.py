"""ollama's models: a manifest a name, and blobs that are named by their checksums.

Layout, names and media types as in its sources (manifest/manifest.go, manifest/paths.go, types/model/name.go,
envconfig/config.go): OLLAMA_MODELS, else ~/.ollama/models, and what its Linux service has in /usr/share/ollama/.ollama/models;
there manifests/HOST/NAMESPACE/MODEL/TAG, or manifests-v2 with links to blobs, and blobs/sha256-DIGEST.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamachat.core.sampling import SamplingParams
from llamachat.errors import CatalogError
from llamachat.models.stores.stored import Name, Store, Stored, document, files, home, place, text
from llamachat.system.metadata import naming

MANIFESTS = ("manifests-v2", "manifests")
HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
LIST = "application/vnd.ollama.manifest.list.v2+json"
KIND = "application/vnd.ollama.image."
DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})", re.IGNORECASE)
# Of its parameters those that we have, and those that change no answer or that the model's own control tokens stand for.
SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
}
ELSEWHERE = {"num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "numa", "low_vram"}
CONTROL = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")  # how a control token is spelled


def folders() -> Sequence[Path]:
    service = Path("/usr/share/ollama/.ollama/models")
    own = home(".ollama", "models")
    return list(dict.fromkeys((place("OLLAMA_MODELS", default=own), own, service)))


def names(folder: Path) -> Iterator[Name]:
    """Without the registry's host, its library's name and :latest."""
    for manifests in MANIFESTS:
        for path in files(folder / manifests, depth=3):
            parts = path.relative_to(folder / manifests).parts
            if len(parts) == 4 and not any(part.startswith(".") for part in parts):
                yield _short(*parts), path


def _short(host: str, namespace: str, model: str, tag: str) -> str:
    before = (host, namespace) if host != HOST else (namespace,) if namespace != NAMESPACE else ()
    return "/".join((*before, model)) + (f":{tag}" if tag != TAG else "")


def same(name: str) -> str:
    """Upper and lower case are one."""
    model, _, tag = name.lower().partition(":")
    return f"{model.removeprefix(f'{HOST}/').removeprefix(f'{NAMESPACE}/')}:{tag or TAG}"


def opened(folder: Path, name: str, path: Path) -> Stored:
    """Raises LlamachatError."""
    manifest = _runnable(folder, document(path))
    layers = [layer for layer in _list(manifest, "layers") if isinstance(layer, dict)]
    kinds = [str(layer.get("mediaType")).removeprefix(KIND) for layer in layers]
    weights = [layer for layer, kind in zip(layers, kinds, strict=True) if kind == "model"]
    if len(weights) != 1:
        raise CatalogError(f"ollama's {name} is not one GGUF file", "no other kind is read there", "choose another")
    file, nbytes = _blob(folder, weights[0])
    told = {kind: layer for layer, kind in zip(layers, kinds, strict=True)}
    system = text(_blob(folder, told["system"])[0]) if "system" in told else None
    sampling, unused = _parameters(_blob(folder, told["params"])[0]) if "params" in told else ({}, ())
    return Stored(
        f"ollama:{name}",
        file,
        nbytes,
        system or None,
        sampling,
        tuple(_notes(name, kinds, unused)),
        "it needs an adapter that ollama keeps beside it" if "adapter" in kinds else "",
    )


def _runnable(folder: Path, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a list of manifests the one whose weights are GGUF; such a one may lie in a blob of its own."""
    if manifest.get("mediaType") != LIST:
        return manifest
    for each in _list(manifest, "manifests"):
        if isinstance(each, dict) and each.get("runner") in ("ollama", "llamacpp"):
            return each if "layers" in each else document(_blob(folder, each)[0])
    return {}


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key)
    return value if isinstance(value, list) else []


def _blob(folder: Path, layer: Mapping[str, Any]) -> tuple[Path, int]:
    """Its file and size. Raises CatalogError where it is not there, or not whole."""
    digest = DIGEST.fullmatch(str(layer.get("digest")))
    if digest is None:
        raise CatalogError("a manifest of ollama's names no checksum", "the model is not used", "fetch it again there")
    file = folder / "blobs" / f"sha256-{digest[1].lower()}"
    found = file.stat().st_size if file.is_file() else None
    if found is None or found != layer.get("size", found):
        raise CatalogError(f"{file} is not there or not whole", "the model is not used", "fetch it again with ollama")
    return file, found


def _parameters(path: Path) -> tuple[dict[str, float], tuple[str, ...]]:
    """What is ours of them, and the names of those that are lost. Raises ConfigError for a bad value."""
    given = document(path)
    sampling: dict[str, Any] = {SAMPLING[key]: value for key, value in given.items() if key in SAMPLING}
    with naming(str(path)):
        SamplingParams().replace(**sampling)
    return sampling, tuple(sorted(key for key in given.keys() - SAMPLING.keys() - ELSEWHERE if _counts(given, key)))


def _counts(given: Mapping[str, object], key: str) -> bool:
    stops = given[key]
    known = isinstance(stops, list) and all(isinstance(stop, str) and CONTROL.fullmatch(stop.strip()) for stop in stops)
    return not (key == "stop" and known)


def _notes(name: str, kinds: Sequence[str], unused: Sequence[str]) -> Iterator[str]:
    if "projector" in kinds:
        yield f"the part of {name} that sees pictures is not used"
    if "messages" in kinds:
        yield f"the first messages that ollama has for {name} are left out"
    if unused:
        yield f"of ollama's parameters for {name} these are not used: {', '.join(unused)[:200]}"


STORE = Store("ollama", "ollama", folders, names, opened, "remove it with `ollama rm {name}`", same)
