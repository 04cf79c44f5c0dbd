"""keys.py: whatever what is kept depends on makes another key, and nothing else does."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import save_bin, save_gguf, save_hf, save_lit, save_meta, save_tokenizer, tiny_model
from gguf_files import write_gguf
from hash_engine import hash_model, tiny_config
from hypothesis import given
from hypothesis.strategies import floats, sampled_from

from llamachat.core.spec import Dtypes, ModelSpec, QuantConfig, RopeScaling
from llamachat.formats.detect import open_checkpoint
from llamachat.generation.snapshot import place
from llamachat.models import keys
from llamachat.models.keys import text_key, weights_key
from quantize.convert import convert
from quantize.once import Quantized, quantized_path
from quantize.recipe import Recipe

MODEL = {"type": "LlamaConfig", "vocab_size": 320, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "theta": 10000.0,
         "seq_length": 128, "rms_norm_eps": 1e-5, "max_decode_length": 96}  # fmt: skip


def hf(folder: Path, sharded: bool = False) -> Path:
    save_hf(tiny_model(), folder, sharded)
    save_tokenizer(folder)
    return folder


def split_gguf(folder: Path) -> Path:
    folder.mkdir()
    state = {name: tensor.float().numpy() for name, tensor in tiny_model().state_dict().items()}
    return write_gguf(folder / "tiny.gguf", state, tiny_model().config.to_dict(), split=8)[1]


def mindformers(folder: Path, **changes: object) -> Path:
    if not (folder / "weights").exists():
        hf(folder / "weights")
    config = {"load_checkpoint": "weights", "model": {"model_config": MODEL | changes}}
    (folder / "predict.yaml").write_text(yaml.safe_dump(config))
    return folder / "predict.yaml"


def ours(folder: Path) -> Path:
    convert(open_checkpoint(save_hf(tiny_model(), folder / "float")), folder / "int4", Recipe())
    return folder / "int4"


FORMATS: dict[str, tuple[Callable[[Path], Path], set[str]]] = {  # and the files that each is made of
    "hf": (hf, {"config.json", "generation_config.json", "model.safetensors"}),
    "hf sharded": (
        lambda folder: hf(folder, sharded=True),
        {"config.json", "generation_config.json", "model.safetensors.index.json"},
    ),
    "bin": (lambda folder: save_bin(tiny_model(), folder), {"config.json", "pytorch_model.bin"}),
    "ours": (ours, {"config.json", "generation_config.json", "model.safetensors"}),
    "gguf": (lambda folder: save_gguf(tiny_model(), folder, quant="Q8_0"), {"model.gguf"}),
    "gguf split": (split_gguf, {f"tiny-{part:05}-of-00003.gguf" for part in (1, 2, 3)}),
    "meta": (
        lambda folder: save_meta(tiny_model(), folder, shards=2),
        {"params.json", "consolidated.00.pth", "consolidated.01.pth"},
    ),
    "lit": (lambda folder: save_lit(tiny_model(), folder) / "lit-llama.pth", {"lit-llama.pth", "lit_config.json"}),
    "mindformers": (mindformers, {"predict.yaml", "config.json", "generation_config.json", "model.safetensors"}),
}


@pytest.fixture(params=FORMATS, scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    make, names = FORMATS[request.param]
    return make(tmp_path_factory.mktemp("top") / "model" if request.param != "mindformers" else
                tmp_path_factory.mktemp("mind")), names  # fmt: skip


def test_a_checkpoint_names_every_file_that_it_is_made_of(model: tuple[Path, set[str]]) -> None:
    path, names = model
    found = {file.name for file in open_checkpoint(path).files}
    shards = {name for name in found if "-of-" in name and name.endswith(".safetensors")}
    assert (found - shards == names and len(shards) > 1) or not names & {"model.safetensors.index.json"}
    assert all(file.is_file() for file in open_checkpoint(path).files)


def test_each_of_its_files_makes_another_key_and_its_neighbours_do_not(model: tuple[Path, set[str]]) -> None:
    path, _ = model
    checkpoint = open_checkpoint(path)
    before, folder = weights_key(checkpoint), checkpoint.files[0].parent
    (folder / "README.md").write_text("more")
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / "other.json").write_text("{}")
    assert weights_key(open_checkpoint(path)) == weights_key(checkpoint) == before
    for file in checkpoint.files:
        content, times = file.read_bytes(), file.stat()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        for other in (bytes(changed), content + b" "):
            file.write_bytes(other)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            assert weights_key(checkpoint) != before, file
        file.write_bytes(content)
        assert weights_key(checkpoint) == before, "the same content is the same model, whenever it was written"


def test_the_tokenizer_and_the_template_matter_for_texts_only(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(hf(tmp_path / "a"))
    tensors, texts = weights_key(checkpoint), text_key(checkpoint)
    for name in ("tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        (tmp_path / "a" / name).write_bytes(b"{}")
        assert (weights_key(checkpoint), text_key(checkpoint)) != (tensors, texts)
        assert weights_key(checkpoint) == tensors
        texts = text_key(checkpoint)
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}")
    assert text_key(open_checkpoint(tmp_path / "a")) != texts


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelSpec)])
def test_every_field_of_the_configuration_makes_another_key(tmp_path: Path, field: str) -> None:
    checkpoint: Any = open_checkpoint(hf(tmp_path))
    other = {
        "rope_scaling": RopeScaling("linear", 2.0),
        "dtypes": Dtypes(norm="bfloat16"),
        "quantization": QuantConfig("int8"),
        "eos_token_ids": (7, 8),
    }
    old = getattr(checkpoint.config, field)
    new = other[field] if field in other else not old if isinstance(old, bool) else old * 2 if old else 6
    assert new != old
    before = weights_key(checkpoint)
    object.__setattr__(checkpoint.config, field, new)  # which its own checks might refuse
    assert weights_key(checkpoint) != before


@given(sampled_from([field.name for field in dataclasses.fields(RopeScaling)]), floats(0.1, 1e6))
def test_every_field_of_a_rope_scaling_makes_another_key(field: str, value: float) -> None:
    config = asdict(replace(tiny_config(), rope_scaling=RopeScaling("yarn", 2.0, 16)))
    other = {**config, "rope_scaling": {**config["rope_scaling"], field: value}}
    assert config == other or keys.key(config) != keys.key(other)


def test_other_code_makes_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(keys.__file__).parents[1]
    covered = {path for pattern in keys.CODE for path in package.parent.glob(pattern)}
    assert {package / name for name in ("engines/native/pack.py", "engines/native/c/kernels.c",
            "engines/native/c/pack.c", "core/rope.py", "core/tensors.py", "formats/ggml.py", "formats/prequantized/bnb.py",
            "engines/torch/engine.py")} < covered  # fmt: skip
    checkpoint = open_checkpoint(hf(tmp_path))
    before = weights_key(checkpoint)
    monkeypatch.setattr(keys, "code", lambda: "other")
    assert weights_key(checkpoint) != before


@pytest.mark.parametrize("file, old, new", [("config.json", '"rope_theta": 10000.0', '"rope_theta": 20000.0'),
                                            ("config.json", "1e-05", "2e-05")])  # fmt: skip
def test_what_was_converted_is_not_taken_for_another_configuration(
    tmp_path: Path, file: str, old: str, new: str
) -> None:
    path, config = hf(tmp_path / "a"), QuantConfig("int8")
    before = quantized_path(open_checkpoint(path), config)
    (path / "README.md").write_text("more")
    assert quantized_path(open_checkpoint(path), config) == before
    assert quantized_path(open_checkpoint(path), QuantConfig("int8", skip=("q_proj",))) != before
    text = (path / file).read_text()
    assert old in text
    (path / file).write_text(text.replace(old, new))
    assert quantized_path(open_checkpoint(path), config) != before


@pytest.mark.parametrize("changes", [{"theta": 20000.0}, {"rms_norm_eps": 1e-6}, {"extend_method": "PI"}])
def test_a_yaml_over_the_same_weights_is_another_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    def all_keys(path: Path) -> tuple[object, ...]:
        checkpoint = open_checkpoint(path)
        model: Any = hash_model()
        model.checkpoint = checkpoint
        return weights_key(checkpoint), place(model, "x"), quantized_path(checkpoint, QuantConfig("int8"))

    before = all_keys(mindformers(tmp_path))
    after = all_keys(mindformers(tmp_path, scaling_factor=2.0, **changes))
    assert not set(before) & set(after)


def test_the_way_of_quantizing_while_loading_makes_another_key(tmp_path: Path) -> None:
    source = open_checkpoint(hf(tmp_path))
    configs = [QuantConfig("int8"), QuantConfig("int4"), QuantConfig("bnb-nf4"), QuantConfig("bnb-fp4"),
               QuantConfig("int4", group_size=64), QuantConfig("int4", skip=("mlp",))]  # fmt: skip
    assert len({weights_key(each) for each in (source, *(Quantized(source, config) for config in configs))}) == 7


def test_a_snapshot_depends_on_engine_window_format_and_what_it_is_of() -> None:
    def changed(slots: int = 64, what: str = "a", said: str = "hash engine", dialog: str | None = "chatml") -> Path:
        model: Any = hash_model(slots)
        model.entry = replace(model.entry, dialog=dialog)
        model.engine.describe = lambda: said
        return place(model, what)

    others = [
        changed(slots=65),
        changed(what="b"),
        changed(said="hash engine; keys and values int8"),
        changed(dialog="llama3"),
    ]
    assert len({changed(), *others}) == 5 and changed() == changed()


def test_a_large_file_counts_by_size_time_and_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "WHOLE", 1 << 16)
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    os.utime(file, ns=(1, 1))
    before = keys.files([file])
    for act in (lambda: os.utime(file, ns=(1, 2)), lambda: os.truncate(file, 1000_000), lambda: flip(file, 0),
                lambda: flip(file, (1 << 20) - 1)):  # fmt: skip
        file.write_bytes(bytes(1 << 20))
        os.utime(file, ns=(1, 1))
        assert keys.files([file]) == before
        act()
        if file.stat().st_mtime_ns != 2:
            os.utime(file, ns=(1, 1))
        assert keys.files([file]) != before


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        stream.write(b"\1")
