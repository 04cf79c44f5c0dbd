"""Adapters from the catalog, an argument or a folder given as a model: found, told of, part of what is kept; and merged."""

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_hf, save_tokenizer, tiny_model
from peft_folders import PeftModel, merged, right, trained
from transformers import (
    LlamaConfig,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

from llamachat import Llama, paths
from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.core.spec import QuantConfig
from llamachat.errors import CatalogError, ConfigError, DoesNotFitError, ModelError, UsageError
from llamachat.formats.adapter import Changed
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.peft import open_peft
from llamachat.generation.snapshot import place
from llamachat.models import adapters
from llamachat.models.catalog import load_catalog, resolve
from llamachat.models.heads import USES
from llamachat.models.keys import weights_key
from llamachat.models.load import LoadedModel, load
from llamachat.models.sources import HubSource
from quantize.convert import convert, making
from quantize.once import Quantized
from quantize.recipe import Recipe

IDS = [5, 9, 17, 300, 42, 42, 7]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, "base", and adapters of it: "a" and "b", and "whole", which has a head of its own."""
    top = tmp_path_factory.mktemp("adapted")
    save_hf(tiny_model(), top / "base")
    save_tokenizer(top / "base")
    for seed, name in enumerate("ab"):
        trained(tiny_model(), top / name, seed)
    trained(tiny_model(), top / "whole", 5, modules_to_save=["lm_head"])
    return top


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(paths, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path


def logits(model: LoadedModel) -> Any:
    return advance(model.engine, Cache(model.engine.slots), IDS, "all")


def opened(name: object, *adapters: Any, **options: Any) -> LoadedModel:
    exact = {"dtype": "float32"} if options.get("engine") == "torch" else {}
    return load(str(name), ctx_size=64, adapters=adapters, **({"kv_bits": 32, "threads": 1} | exact | options))


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_a_model_is_loaded_with_adapters(made: Path, engine: str) -> None:
    theirs = right(tiny_model(), IDS, (made / "a", 1.0), (made / "b", -0.5))
    model = opened(made / "base", made / "a", f"{made}/b:-0.5", engine=engine)
    np.testing.assert_allclose(logits(model), theirs, atol=2e-3, rtol=1e-3)
    assert model.describe()["adapters"] == "a × 1, b × -0.5"
    model.adapters.scale("b", 0)
    np.testing.assert_allclose(logits(model), right(tiny_model(), IDS, (made / "a", 1.0)), atol=2e-3, rtol=1e-3)
    assert model.adapters.scale("b", None).scale == -0.5
    np.testing.assert_allclose(logits(model), theirs, atol=2e-3, rtol=1e-3)
    model.adapters.scale("a", 0)
    model.adapters.scale("b", 0)
    added = model.adapters.add((made / "a", 2.0))
    assert added.name == "a-2"
    np.testing.assert_allclose(logits(model), right(tiny_model(), IDS, (made / "a", 2.0)), atol=4e-3, rtol=1e-3)


def test_whole_tensors_take_the_places_of_the_models(made: Path) -> None:
    model = opened(made / "base", made / "whole", engine="native")
    np.testing.assert_allclose(logits(model), right(tiny_model(), IDS, (made / "whole", 1.0)), atol=2e-3, rtol=1e-3)
    assert any("'lm_head.weight' of its own: it stays at scale 1" in note for note in model.notes)
    with pytest.raises(UsageError, match="leave its scale at 1"):
        model.adapters.scale("whole", 0.5)


def test_a_failed_change_changes_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(made / "base", made / "a", engine="native")
    before = logits(model)

    def full(scaled: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(model.engine, "adapt", full)
        for change in (lambda: model.adapters.scale("a", 0), lambda: model.adapters.add(made / "b")):
            with pytest.raises(DoesNotFitError, match="too little memory for the adapters"):
                change()
    assert model.adapters.describe() == "a × 1" and np.array_equal(logits(model), before)
    monkeypatch.setattr(adapters, "MOST", 1)
    with pytest.raises(UsageError, match="there are 1 adapters already"):
        model.adapters.add(made / "b")


def test_keys_of_what_is_kept_cover_adapters_and_their_scales(made: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(made / "a", tmp_path / "a"))
    weights = other / "adapter_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    ways: list[tuple[Any, ...]] = [
        (),
        (made / "a",),
        ((made / "a", 0.5),),
        (other,),
        (made / "b",),
        (made / "a", made / "b"),
    ]
    models = [opened(made / "base", *way, engine="native") for way in ways]
    assert len({place(model, "x") for model in models}) == len(ways)
    assert len({weights_key(model.checkpoint) for model in models}) == 1, "the packed weights are the same"
    model = models[1]
    before = place(model, "x")
    model.adapters.scale("a", 0)
    assert place(model, "x") == place(models[0], "x")
    model.adapters.scale("a", 1)
    assert place(model, "x") == before
    whole = opened(made / "base", made / "whole", engine="native")
    assert weights_key(whole.checkpoint) != weights_key(models[0].checkpoint), "here they are not"


def test_keys_are_those_of_the_adapter_that_was_opened(made: Path, tmp_path: Path) -> None:
    """Trained again into the same folder, it is another; and the one that runs is still the first."""
    folder = shutil.copytree(made / "a", tmp_path / "again")
    model = opened(made / "base", folder, engine="native")
    first = place(opened(made / "base", made / "a", engine="native"), "x")
    shutil.rmtree(folder)
    shutil.copytree(made / "b", folder)
    assert place(model, "x") == first != place(opened(made / "base", folder, engine="native"), "x")


def test_a_base_that_is_quantized_as_it_is_read_has_a_key_with_a_head_of_an_adapter(made: Path) -> None:
    base = open_checkpoint(made / "base")
    whole = [(open_peft(made / "whole", base), 1.0)]
    found = [Changed(Quantized(base, QuantConfig(scheme)), whole, merge=False) for scheme in ("int8", "int4", "int8")]
    keys = [weights_key(each) for each in found]
    assert keys[0] == keys[2] != keys[1]


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Callable[[object], Path]:
    """A copy of "a" that names something as its base."""

    def adapter(named: object) -> Path:
        folder = tmp_path / "mine" / "a"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made / "a", folder)
        config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": named}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return adapter


def test_an_adapter_given_as_a_model_finds_its_base_and_says_so(
    made: Path, adapter: Callable[[object], Path], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "base").symlink_to(made / "base")
    for named in (str(made / "base"), "../base"):
        folder = adapter(named)
        model = opened(folder, engine="native")
        np.testing.assert_allclose(logits(model), right(tiny_model(), IDS, (made / "a", 1.0)), atol=2e-3, rtol=1e-3)
        assert f"{folder} is an adapter; it runs on {(made / 'base').resolve()}" in model.notes[0]
        assert model.name == model.reference == str(folder)


def test_its_base_may_be_of_the_catalog_or_the_hub(adapter: Callable[[object], Path]) -> None:
    catalog = load_catalog().entries
    by_name = resolve(str(adapter("SmolLM2-135M")))
    assert by_name.source == catalog["smollm2-135m"].source and by_name.dialog == "chatml"
    by_repository = resolve(str(adapter("HuggingFaceTB/SmolLM2-360M-Instruct")))
    assert (
        by_repository.source == catalog["smollm2-360m"].source and "it runs on smollm2-360m" in by_repository.notes[0]
    )
    unknown = resolve(str(adapter("someone/something")))
    assert unknown.source == HubSource("someone/something") and len(unknown.adapters) == 1


@pytest.mark.parametrize(
    "named", [None, "", ".", "nothing", "../nothing", "a/b/c", "/etc/../x", "-x/y", "a\0b", "https://x/y"]
)
def test_a_base_that_cannot_be_found_is_one_line(adapter: Callable[[object], Path], named: object) -> None:
    with pytest.raises(
        CatalogError, match="it cannot run alone; give the model, and the adapter with --lora"
    ) as refused:
        resolve(str(adapter(named)))
    assert "\n" not in str(refused.value)


def test_the_catalog_names_adapters(made: Path, folders: Path) -> None:
    file = folders / "config/llamachat/models.toml"
    file.parent.mkdir(parents=True)
    (file.parent / "a").symlink_to(made / "a")
    file.write_text(f'[models.mine]\nsource = {{ path = "{made}/base" }}\nadapters = ["a", "{made}/b:-0.5"]\n')
    model = opened("mine", engine="native")
    assert [(each.name, each.scale) for each in model.adapters.held] == [("a", 1.0), ("b", -0.5)]
    theirs = right(tiny_model(), IDS, (made / "a", 1.0), (made / "b", -0.5))
    np.testing.assert_allclose(logits(model), theirs, atol=2e-3, rtol=1e-3)
    for line in ('adapters = "a"', "adapters = [1]", 'notes = ["a"]'):
        file.write_text(f'[models.mine]\nsource = {{ path = "{made}/base" }}\n{line}\n')
        with pytest.raises(ConfigError, match=line.partition(" ")[0]):
            resolve("mine")


def test_the_api_takes_adapters_and_scales_them(made: Path) -> None:
    def ids(model: Llama) -> list[int]:
        return model.generate([IDS], max_gen_len=6, temperature=0)[0][0]

    llama = Llama.build(made / "base", max_seq_len=64, max_batch_size=1, adapters=[(made / "a", 1.0)])
    plain = ids(Llama.build(made / "base", max_seq_len=64, max_batch_size=1))
    adapted = ids(llama)
    llama.scale_adapter("a", 0)
    assert ids(llama) == plain != adapted
    llama.scale_adapter("a", 1)
    assert ids(llama) == adapted
    for wrong in ("1", float("nan"), True):
        with pytest.raises(UsageError, match="an adapter cannot be scaled by"):
            llama.scale_adapter("a", wrong)  # type: ignore[arg-type]
    for given, said in (
        ("a", "adapters is 'a'"),
        ([3], "3 is no adapter"),
        ([("a",)], "is no adapter"),
        ([("a", "x")], "by 'x'"),
    ):
        with pytest.raises(UsageError, match=said):
            Llama.build(made / "base", adapters=given)


# Merged before coding -------------------------------------------------------------------------------------------------


def test_what_is_quantized_merged_is_what_pefts_merge_gives(made: Path, tmp_path: Path) -> None:
    merged(tiny_model(), made / "a").save_pretrained(tmp_path / "theirs")
    save_tokenizer(tmp_path / "theirs")
    base = open_checkpoint(made / "base")
    whole = Changed(base, [(open_peft(made / "a", base), 1.0)], merge=True)
    recipe = Recipe()
    convert(whole, tmp_path / "ours", recipe)
    convert(open_checkpoint(tmp_path / "theirs"), tmp_path / "right", recipe)
    ours, right = (dict(open_checkpoint(tmp_path / name).tensors()) for name in ("ours", "right"))
    for name, tensor in right.items():
        for part in ("codes", "scale", "data"):
            if hasattr(tensor, part):
                found = getattr(ours[name], part)
                assert np.mean(found != getattr(tensor, part)) < 0.001, name  # where both round the other way
    assert making(whole, recipe, None) != making(base, recipe, None)
    half = Changed(base, [(open_peft(made / "a", base), 0.5)], merge=True)
    assert making(whole, recipe, None) != making(half, recipe, None), "another scale is another conversion"


def test_an_adapter_of_one_use_of_a_tied_embedding_unties_it(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    save_hf(model, tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    trained(copy.deepcopy(model), tmp_path / "a", target_modules=["embed_tokens", "q_proj"])
    theirs = right(copy.deepcopy(model), IDS, (tmp_path / "a", 1.0))
    base = open_checkpoint(tmp_path / "base")
    convert(Changed(base, [(open_peft(tmp_path / "a", base), 1.0)], True), tmp_path / "out", Recipe("int8"))
    out = opened(tmp_path / "out", engine="torch")
    assert not out.checkpoint.config.tie_word_embeddings
    assert np.corrcoef(logits(out).ravel(), theirs.ravel())[0, 1] > 0.999


def test_packed_weights_are_not_merged_into(made: Path, tmp_path: Path) -> None:
    convert(open_checkpoint(made / "base"), tmp_path / "int4", Recipe())
    model = opened(tmp_path / "int4", made / "a", engine="native")  # but run with an adapter
    assert torch.isfinite(torch.from_numpy(logits(model))).all()
    with pytest.raises(ModelError, match="nothing can be merged into them; merge into the float model"):
        model.adapters.merged(model.checkpoint)


CLASSES = {
    "SEQ_CLS": LlamaForSequenceClassification,
    "TOKEN_CLS": LlamaForTokenClassification,
    "QUESTION_ANS": LlamaForQuestionAnswering,
}


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("task", CLASSES)
def test_an_adapter_brings_a_head_that_its_base_has_not(made: Path, tmp_path: Path, task: str, engine: str) -> None:
    causal = tiny_model()
    labelled = CLASSES[task](LlamaConfig(**(causal.config.to_dict() | {"num_labels": 3, "tie_word_embeddings": False})))
    backbone = labelled.transformer if task == "QUESTION_ANS" else labelled.model
    backbone.load_state_dict(causal.model.state_dict())
    folder = trained(labelled.eval(), tmp_path / "adapter", 7, task_type=task)
    rows = len(labelled.qa_outputs.weight) if task == "QUESTION_ANS" else 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(labelled, folder).eval()
    with torch.no_grad():
        out = adapted(torch.tensor([IDS]))
    spans = "start_logits" in out
    right = torch.stack((out.start_logits, out.end_logits), -1)[0] if spans else out.logits[0]
    model = opened(made / "base", folder, engine=engine, heads=[*USES])
    found = logits(model)
    np.testing.assert_allclose(found[-1] if task == "SEQ_CLS" else found, right, atol=1e-3, rtol=1e-4)
    assert model.checkpoint.labels and len(model.checkpoint.labels.names) == rows
    with pytest.raises(UsageError, match="it cannot do what is asked; use llamachat"):
        opened(made / "base", folder, engine=engine)


def test_an_adapter_of_a_class_without_a_head_is_read(made: Path, tmp_path: Path) -> None:
    causal = tiny_model()
    folder = trained(causal.model, tmp_path / "adapter", 3, task_type="FEATURE_EXTRACTION")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right = PeftModel.from_pretrained(causal.model, folder).eval()(torch.tensor([IDS])).last_hidden_state[0]
    model = opened(made / "base", folder, engine="torch")
    found = model.engine.forward(IDS, Cache(64).plan(len(IDS)), "all", "hidden")
    np.testing.assert_allclose(found, right, atol=1e-3, rtol=1e-4)
