"""A path or catalog name -> checkpoint -> a model that is ready to answer."""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, cast, get_args

import numpy as np

from llamachat.checks import LARGEST, require_choice, require_whole
from llamachat.core.dialog import DialogFormat, Message
from llamachat.core.engine import Engine
from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import Dtype, HeadKind, KvBits, ModelSpec, QuantConfig
from llamachat.core.tensors import QuantTensor, Tensor, to_float32
from llamachat.core.tokenizer import Tokenizer
from llamachat.engines import memory
from llamachat.engines.encoding import Encoding, encoding
from llamachat.engines.select import build_engine, passed_over
from llamachat.engines.world import processes
from llamachat.errors import ConfigError, DoesNotFitError, FormatError, ModelError, UsageError, no_memory, reading
from llamachat.events import Progress
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats import Checkpoint
from llamachat.formats.detect import open_checkpoint
from llamachat.formats.parts import Parts
from llamachat.formats.prequantized.schemes import SCHEMES
from llamachat.models import catalog, fetch, fit
from llamachat.models.adapters import Adapters, Given, reference, several
from llamachat.models.catalog import ModelEntry
from llamachat.models.heads import PREDICTS, require_head
from llamachat.models.packed_copy import Copy, worth_keeping
from llamachat.models.packed_weights import Packer, limit_of
from llamachat.models.sources import LocalPath
from llamachat.tokenizers.dialog_formats import choose
from llamachat.tokenizers.open import open_file

Report = Callable[[str], None]


class Prepare(Protocol):
    """Quantizes a float checkpoint that is to run quantized. quantize.prepare has it; whoever loads hands it in."""

    def __call__(self, source: Checkpoint, wanted: QuantConfig, keep: bool, progress: Progress) -> Checkpoint:
        """The checkpoint quantized as its tensors are read; or (`keep`) converted once, and kept in the cache folder."""
        ...


LONG = 1 << 18  # characters; texts up to it are encoded at once, whatever they make
PIECE = 1 << 16  # characters
SLACK = 64  # tokens

MOST_PROCESSES = 256
PADDING = 1024  # rows that a model's vocabulary may have beyond its tokenizer's, to be a round number


@dataclass
class LoadedModel:
    """Weights, tokenizer, dialog format and defaults of one model, ready to answer."""

    entry: ModelEntry
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    engine: Engine
    load_s: float
    parallel: int = 1  # texts of full length that the engine holds at once
    adapters: Adapters = field(default_factory=Adapters)
    remark: str | None = None  # on what the engine computes in
    copy: Copy | None = None  # of its weights, to be kept on disk behind an answer, where that pays

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def context(self) -> int:
        """Tokens that one text may have; of an encoder-decoder model, an answer."""
        return self.engine.slots // self.parallel

    @property
    def reads(self) -> Encoding | None:
        """The engine, where it reads a source and answers it, and goes on with no text."""
        return encoding(self.engine)

    @property
    def notes(self) -> list[str]:
        """What a person should know before using it."""
        made_for = made_for_context(self.entry, self.checkpoint)
        notes = [*self.entry.notes, *self.tokenizer.notes, *self.adapters.notes, *filter(None, [self.remark])]
        if self.context <= made_for:
            return notes
        return [
            *notes,
            f"the context is {self.context} tokens, {self.name} was made for {made_for}; "
            f"answers may get worse past these; --ctx-size {made_for} stays within them",
        ]

    @property
    def reference(self) -> str:
        """What names it from any folder: its catalog name, or the whole path."""
        path = os.path.abspath(os.path.expanduser(self.name))  # noqa: PTH100, PTH111 - links stay, a missing home is no error
        own = isinstance(self.entry.source, LocalPath) and path == os.path.abspath(self.entry.source.path)  # noqa: PTH100
        return path if own else self.name

    @property
    def system(self) -> str | None:
        """The catalog's default system prompt."""
        return self.entry.system

    @cached_property
    def dialog(self) -> DialogFormat:
        """Raises UsageError for a model that has no dialog format."""
        if self.reads:
            cause = f"{self.name} answers a source text, it has no dialog"
            raise UsageError(cause, "it cannot chat", "ask it with `llamachat complete`")
        with reading(f"the dialog format of {self.name}", ConfigError, "it cannot chat", "use complete --raw"):
            return choose(self.entry.dialog, self.tokenizer, self.checkpoint.chat_template)

    @cached_property
    def sampling(self) -> SamplingParams:
        """The model's own defaults; the catalog's go before the checkpoint's."""
        own = {key: value for key, value in self.checkpoint.sampling.items() if key != "max_length"}
        return SamplingParams().replace(**{**own, **self.entry.sampling})

    @cached_property
    def text_stop_ids(self) -> frozenset[int]:
        """Every id that ends a plain text: what the model's configuration and its tokenizer call EOS."""
        return frozenset(self.checkpoint.config.eos_token_ids) | self.tokenizer.eos_ids

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends an answer: those that end a text, and those that end a turn in the model's dialog format.

        What ends a thought there does not, though metadata may name it: gpt-oss's <|end|>.
        """
        try:
            names = [name for name in self.dialog.thoughts.marks.values() if name in self.tokenizer.specials]
            return (self.text_stop_ids | self.dialog.stop_ids) - {self.tokenizer.specials[name] for name in names}
        except (UsageError, ConfigError):  # it has none that works, which who gives it a dialog is told
            return self.text_stop_ids

    def require_continuing(self, what: str) -> None:
        """Raises UsageError for a model that answers a source: `what` is for those that go on with a text."""
        if self.reads:
            cause = f"{self.name} answers a source text and goes on with none"
            raise UsageError(cause, f"{what} is not for it", "ask it with `llamachat complete`")

    def encode_text(self, text: str) -> list[int]:
        """Plain text as a sequence of its own: BOS, if the model has one, the text's ids, and behind a source what ends it."""
        self.require_room([text])
        bos = self.tokenizer.bos_id
        return [*([bos] if bos is not None else []), *self.tokenizer.encode(text), *self.text_end]

    @property
    def text_end(self) -> tuple[int, ...]:
        """What a plain text ends with as the model gets it: nothing, unless that is a source."""
        return self.tokenizer.frames[1][-1] if self.reads else ()

    def encode_dialog(self, messages: Sequence[Message], thinking: bool | None = None) -> list[int]:
        """A dialog, opened for an answer, as one prompt; `thinking` as DialogFormat.having has it."""
        self.require_room(message.content for message in messages)
        return self.dialog.having(thinking).encode(messages)

    def require_room(self, texts: Iterable[str]) -> None:
        """Raises DoesNotFitError for what cannot fit before all of it is encoded, which takes some hundred bytes a token.

        It is encoded piece by piece until there are too many tokens. Where a text is cut it makes a few more than whole, so
        SLACK is left to each piece; the cache counts in the end.
        """
        tokens = 0
        room = self.reads.source_room() if self.reads else self.context
        remedy = "shorten the text" if self.reads else "shorten the text or raise --ctx-size"
        for text in texts:
            for start in range(0, len(text) if len(text) > LONG else 0, PIECE):
                tokens += len(self.tokenizer.encode(text[start : start + PIECE], start=False)) - SLACK
                if tokens > room:
                    what = "there is memory for" if self.reads else "the context holds"
                    cause = f"the prompt makes more than {tokens} tokens, {what} {room}"
                    raise DoesNotFitError(cause, "nothing was computed", remedy)

    def count(self, text: str, most: int) -> tuple[int, bool]:
        """Tokens of a text, and whether all of it was counted; of one that makes more than `most`, what its beginning lets
        expect: a megabyte is never encoded to be refused. It is cut where words end, which tokens hardly ever span."""
        tokens = start = 0
        while start < len(text):
            end = text.rfind(" ", start + PIECE // 2, start + PIECE) if len(text) - start > PIECE else len(text)
            end = end if end > start else start + PIECE
            tokens += len(self.tokenizer.encode(text[start:end], start=False))
            if tokens > most and end < len(text):
                return round(tokens * len(text) / end), False
            start = end
        return tokens, True

    @property
    def largest_context(self) -> int:
        """Tokens of context that it was made for, as far as there is memory for their keys and values in 16 bits."""
        config = self.checkpoint.config
        token = memory.kv_bytes(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, 1, 16)
        return min(made_for_context(self.entry, self.checkpoint), self.context + memory.available_memory() // token)

    def token_text(self, token: int) -> str:
        """One token for people: a control token by its name, part of a character as U+FFFD."""
        return self._special_names.get(token) or self.tokenizer.token_bytes(token).decode(errors="replace")

    @cached_property
    def _special_names(self) -> Mapping[int, str]:
        return {token: name for name, token in self.tokenizer.specials.items()}

    def describe(self) -> dict[str, str]:
        """Facts for people."""
        about = {"model": self.name, "file": str(self.checkpoint.path), "engine": self.engine.describe()}
        return about | ({"adapters": self.adapters.describe()} if self.adapters.held else {})


def load(
    name_or_path: str | ModelEntry | None = None,
    *,
    ctx_size: int | None = None,
    parallel: int = 1,
    kv_bits: int | None = None,
    device: str = "auto",
    engine: str = "auto",
    dtype: Dtype | None = None,
    threads: int | None = None,
    tensor_parallel: int | None = None,
    pack_cache: str | None = None,
    offline: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
    tokenizer_path: str | os.PathLike[str] | None = None,
    prepare: Prepare | None = None,
    adapters: Sequence[Given] = (),
    heads: Collection[HeadKind] = PREDICTS,
    remedies: memory.Remedies = memory.FLAGS,
) -> LoadedModel:
    """Find (downloading if need be), check and load a model; None is the catalog's default.

    ctx_size: tokens of context; by default the model's own, at most memory.DEFAULT_CONTEXT. parallel: texts of that length
    to hold at once, fewer where memory is short. dtype: what torch computes in, which the native
    engine then leaves the model to; "float32" computes with the exact values of the weights.
    pack_cache: disk for packed weights, such as "5GB", or "off"; by default a tenth of what is free.
    tensor_parallel: processes to split it over, with all threads or a GPU each; None: those that torchrun has started, or one.
    tokenizer_path: a file to take in place of the checkpoint's own tokenizer. prepare: quantizes what is to be. adapters: PEFT
    folders, as "PATH[:SCALE]" or (path, scale), beside those that the catalog names for the model; they add up. heads: those
    that the model may have. remedies: what the caller can change where it does not fit, for the error.
    Raises LlamachatError: unknown model, damaged files, another model's tokenizer, or too little memory.
    """
    check_options(ctx_size, kv_bits, dtype, threads, tensor_parallel, pack_cache)
    begin = time.perf_counter()
    entry = name_or_path if isinstance(name_or_path, ModelEntry) else catalog.resolve(name_or_path)
    path = obtain(entry, ctx_size, kv_bits, offline, force, progress, prepare, remedies=remedies)
    given = [*entry.adapters, *several(adapters)]
    checkpoint, beside = opened(path, given, prepare)
    config = checkpoint.config
    require_head(entry.name, config, heads)
    bits = kv_bits or (config.quantization.kv_bits if config.quantization else None)
    slots = ctx_size or min(made_for_context(entry, checkpoint), memory.DEFAULT_CONTEXT)
    _require_positions(path, config, slots, remedies)
    say = report or silent
    for place, ignored in ((path, checkpoint.ignored), *beside.ignored):
        if ignored:
            say(f"{place.name}: ignored, as without effect on inference: {', '.join(ignored)}")
    if config.depends_on_length(slots * parallel):
        parallel = 1  # what tokens mean depends on how many slots there are
    packer = Packer(entry.name, limit_of(pack_cache), progress or fetch.silent)
    with ThreadPoolExecutor(1) as reader:  # a vocabulary is read by one core while weights are packed by the others
        tokenizer = reader.submit(_tokenizer, checkpoint, tokenizer_path)
        ready, parallel = _built(
            checkpoint,
            slots,
            parallel,
            engine=engine,
            device=device,
            dtype=dtype,
            bits=cast(KvBits | None, bits),
            threads=threads,
            force=force,
            remedies=remedies,
            say=say,
            pack=packer,
            beside=beside.nbytes,
            processes=processes(tensor_parallel),
            opening={"path": str(path), "adapters": [[str(each.path), each.scale] for each in map(reference, given)]},
        )
        vocabulary = tokenizer.result()
    beside.bind(ready)
    remark = passed_over(checkpoint, dtype, engine, device, processes(tensor_parallel))
    copy = worth_keeping(packer.fresh, packer.limit)
    return LoadedModel(
        entry, checkpoint, vocabulary, ready, time.perf_counter() - begin, parallel, beside, remark, copy
    )


def opened(
    path: str | os.PathLike[str], adapters: Iterable[Given], prepare: Prepare | None
) -> tuple[Checkpoint, Adapters]:
    """The checkpoint as it runs, with the adapters beside it. Raises LlamachatError."""
    checkpoint = _quantized(open_checkpoint(Path(path)), prepare)
    beside = Adapters.opened(checkpoint, adapters)
    return beside.changed(checkpoint), beside


def _require_positions(path: Path, config: ModelSpec, context: int, remedies: memory.Remedies) -> None:
    """Raises UsageError for more tokens than a model has learned positions for."""
    most = config.longest_source if isinstance(config, EncoderDecoderSpec) else None
    if most is not None and context > most:
        cause = f"{path.name} has positions for {most} tokens"
        remedy = remedies.context and f"use {remedies.context.format(most)}"
        raise UsageError(cause, f"a context of {context} cannot be had", remedy or "")


def _tokenizer(checkpoint: Checkpoint, other: str | os.PathLike[str] | None) -> Tokenizer:
    """Its own, or that of another file. Raises LlamachatError."""
    return checkpoint.tokenizer() if other is None else _other_tokenizer(Path(other), checkpoint.config)


def _other_tokenizer(path: Path, config: ModelSpec) -> Tokenizer:
    tokenizer = open_file(path)
    if not 0 <= config.vocab_size - tokenizer.vocab_size < PADDING:
        cause = f"{path} has {tokenizer.vocab_size} tokens, the model's vocabulary {config.vocab_size}"
        raise ModelError(cause, "the model was not loaded", "give the tokenizer that it was made with")
    return tokenizer


def made_for_context(entry: ModelEntry, checkpoint: Checkpoint) -> int:
    """Tokens of context that a model was made for."""
    return int(entry.context or checkpoint.sampling.get("max_length") or checkpoint.config.max_position_embeddings)


def silent(line: str) -> None:
    """A report that nobody reads."""


def _built(checkpoint: Checkpoint, slots: int, parallel: int, **options: Any) -> tuple[Engine, int]:
    """An engine for so many texts of so many slots, or for as many as fit; and how many these are."""
    try:
        return _engine(checkpoint, slots=slots * parallel, **options), parallel
    except DoesNotFitError:
        if parallel == 1:
            raise
    return _built(checkpoint, slots, parallel // 2, **options)


def _engine(checkpoint: Checkpoint, **options: Any) -> Engine:
    try:
        return build_engine(checkpoint, partial(checked, checkpoint), **options)
    except MemoryError as error:
        raise no_memory(f"for {checkpoint.path}") from error


def check_options(
    ctx_size: int | None,
    kv_bits: int | None,
    dtype: str | None,
    threads: int | None,
    tensor_parallel: int | None = None,
    pack_cache: str | None = None,
) -> None:
    """Raises UsageError for what no machine can do."""
    limit_of(pack_cache)
    if ctx_size is not None:
        require_whole("the context size", ctx_size, 1, LARGEST["max_position_embeddings"], UsageError)
    if threads is not None:  # more than there are processors wait for each other, thousands for ever
        require_whole("the number of threads", threads, 1, os.cpu_count() or 1, UsageError)
    if tensor_parallel is not None:
        require_whole("the number of processes", tensor_parallel, 1, MOST_PROCESSES, UsageError)
    processes(tensor_parallel)
    if kv_bits is not None:
        require_choice("kv_bits", kv_bits, get_args(KvBits), UsageError)
    if dtype is not None:
        require_choice("dtype", dtype, get_args(Dtype), UsageError)


def obtain(
    entry: ModelEntry,
    ctx_size: int | None = None,
    kv_bits: int | None = None,
    offline: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    prepare: Prepare | None = None,
    report: Report | None = None,
    remedies: memory.Remedies = memory.FLAGS,
) -> Path:
    """The model's files, downloaded and quantized if they are not here; but not if it is plain that they would not fit.

    report: told of what was chosen from a hub's repository. remedies: as `load` has it.
    """
    shown = progress or fetch.silent

    def check(settled: ModelEntry) -> None:
        fit.require(settled, ctx_size, kv_bits, force, remedies)
        if settled.source != entry.source:
            (report or silent)(fetch.describe(settled))

    return _converted(fetch.fetch(entry, shown, offline, check), entry, shown, prepare)


def _converted(path: Path, entry: ModelEntry, progress: Progress, prepare: Prepare | None) -> Path:
    """Where the model lies that the catalog's quant_config makes of these files, at its first use; packed ones stay."""
    if entry.quant_config is None or _is_packed(source := open_checkpoint(path)):
        return path
    return (prepare or _unprepared)(source, entry.quant_config, True, progress).path


def _quantized(checkpoint: Checkpoint, prepare: Prepare | None) -> Checkpoint:
    """The checkpoint as its own configuration wants it (MindFormers' quant_config, over float weights).

    Another project's settings (bitsandbytes') are no wish: they say how the weights that lie there were made.
    """
    wanted = checkpoint.config.quantization
    if wanted is None or SCHEMES[wanted.scheme].foreign or _is_packed(checkpoint):
        return checkpoint
    return (prepare or _unprepared)(checkpoint, wanted, False, fetch.silent)


def _unprepared(source: Checkpoint, wanted: QuantConfig, keep: bool, progress: Progress) -> Checkpoint:
    cause = f"{source.path} is to be quantized to {wanted.scheme}"
    raise UsageError(cause, "nothing that could was handed to load", "give it prepare=quantize.prepare.prepare")


def _is_packed(checkpoint: Checkpoint) -> bool:
    return any(info.packing is not None for info in checkpoint.index().values())


def checked(checkpoint: Checkpoint, parts: Parts | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors, or these parts of them; refuses scales and vectors that are not finite: one would spoil every answer."""
    for name, tensor in checkpoint.tensors(parts):
        numbers = (tensor.scale, tensor.minimum) if isinstance(tensor, QuantTensor) else (tensor.data,)
        if isinstance(tensor, QuantTensor) or len(tensor.shape) == 1:
            for part in numbers:
                if part is not None and not np.isfinite(to_float32(part)).all():
                    raise FormatError(
                        f"{checkpoint.path}: tensor {name} has values that are not finite", "it is damaged"
                    )
        yield name, tensor
