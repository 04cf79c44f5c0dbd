"""Every family from the files that people have: what transformers saves and llama.cpp's converter writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import CASES, logits, model_of, save_family_gguf

from llamachat.core.cache import Cache
from llamachat.core.generate import advance
from llamachat.engines.torch.engine import TorchEngine
from llamachat.formats.detect import open_checkpoint

IDS = np.random.default_rng(0).integers(3, 97, 40).tolist()


def ours(path: Path, slots: int = 64) -> Any:
    checkpoint = open_checkpoint(path)
    engine = TorchEngine.build(checkpoint.config, checkpoint.tensors(), slots=slots, dtype="float32")
    return advance(engine, Cache(slots), IDS, "all")


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][2]])
def test_a_gguf_file_gives_the_logits_of_the_model_that_it_was_made_of(case: str, tmp_path: Path) -> None:
    arch, changes = CASES[case][2] or ("", {})
    model = model_of(case, **changes)
    path = save_family_gguf(model, arch, tmp_path / "model.gguf")
    np.testing.assert_allclose(ours(path), logits(model, IDS), atol=1e-4, rtol=1e-4)
