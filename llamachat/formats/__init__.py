"""What a checkpoint is, whatever file it comes from: one module a format, each lazy and mapped."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llamachat.core.spec import ModelSpec
from llamachat.core.tokenizer import Tokenizer
from llamachat.formats.labels import Labels

if TYPE_CHECKING:
    from llamachat.core.tensors import Tensor, TensorInfo
    from llamachat.families.family import Layout
    from llamachat.formats.parts import Parts


class Checkpoint(Protocol):
    """Opened from headers alone; no weight is read before `tensors()` is iterated.

    Tensor names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), matrices are [out, in], and query and key
    rows are in half-split RoPE order, whatever the file's own conventions. `ModelSpec.tensor_shapes()` lists them.
    """

    path: Path
    config: ModelSpec
    sampling: Mapping[str, Any]  # SamplingParams fields that its own metadata sets, and perhaps max_length (in tokens)
    chat_template: str | None  # Jinja source, if the checkpoint has one
    pooling: str | None  # how vectors of tokens become one of a text, where its files say; see pooling.py
    ignored: tuple[str, ...]  # keys of its metadata that cannot change inference, for --verbose
    labels: Labels | None  # what the rows of a head that classifies mean; None for any other
    files: tuple[Path, ...]  # all that configuration and tensors were read from; what is kept of them depends on these

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The same of the tokenizer, where those are others."""
        ...

    @property
    def recipe(self) -> object:
        """How tensors are quantized while they are read; None: they are as in the files."""
        ...

    @property
    def layout(self) -> "Layout":
        """How the model's class in transformers calls and joins its matrices, and so what was trained there."""
        ...

    def index(self) -> "Mapping[str, TensorInfo]":
        """Canonical name -> shape and stored bytes, from headers."""
        ...

    def tensors(self, parts: "Parts | None" = None) -> "Iterator[tuple[str, Tensor]]":
        """Each tensor once, packed or float, mapped where the file allows. Raises FormatError on damage.

        Of those that are named in `parts` no more is read than the blocks that hold the part; or rows that are whole, where
        bitsandbytes packed a width that 32 does not divide, and one expert's matrix, where a file holds a stack of them.
        """
        ...

    def tokenizer(self) -> Tokenizer:
        """Raises FormatError when the checkpoint has none."""
        ...
