"""Adapters as PEFT itself writes them, of random weights, for tiny models; and the logits that PEFT gives with them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer

LINEARS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]


def trained(model: Any, folder: Path, seed: int = 0, **options: Any) -> Path:
    """An adapter of this model, saved; `options` are LoraConfig's. The model itself is as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": LINEARS} | options)))
        before = {name: weight.detach().clone() for name, weight in adapted.named_parameters() if weight.requires_grad}
        generator = torch.Generator().manual_seed(seed)
        for name, weight in adapted.named_parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=generator) * 0.2
                weight.data.copy_(noise if "lora_" in name else weight.data + noise)  # of tied ones there is one memory
        adapted.save_pretrained(folder)
        for name, weight in adapted.named_parameters():
            if name in before:
                weight.data.copy_(before[name])
        adapted.unload()
    return folder


def right(model: Any, ids: list[int], *folders: tuple[Path, float]) -> NDArray[np.float32]:
    """The logits with these adapters, each scaled, as PEFT has them. The model is spoilt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, folders[0][0], adapter_name="a0")
        for number, (folder, _) in enumerate(folders[1:], 1):
            adapted.load_adapter(folder, adapter_name=f"a{number}")
        adapted.base_model.set_adapter([f"a{number}" for number in range(len(folders))])
        for module in (each for each in adapted.modules() if isinstance(each, LoraLayer)):
            for number, (_, scale) in enumerate(folders):
                if f"a{number}" in module.scaling:
                    module.scaling[f"a{number}"] *= scale
        with torch.no_grad():
            rows: NDArray[np.float32] = adapted.eval()(torch.tensor([ids])).logits[0].numpy()
    return rows


def merged(model: Any, folder: Path) -> Any:
    """The model with an adapter merged into it by PEFT. The model itself is spoilt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, folder).merge_and_unload()
