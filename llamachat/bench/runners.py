"""The engines that are measured, ours and the peers, each made from one JSON object in a process of its own."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from llamachat.bench.work import Course, Runner, Work
from llamachat.core.cache import Cache
from llamachat.core.engine import Engine
from llamachat.core.generate import advance, prefill
from llamachat.engines.memory import Remedies
from llamachat.errors import DoesNotFitError, LlamachatError, UsageError

if TYPE_CHECKING:
    from llamachat.bench.shapes import Scheme
    from llamachat.models.load import Prepare

REMEDIES = Remedies("--prompt, or --depth and --decode together, of at most {} tokens", force=None)


@dataclass(frozen=True)
class Spec:
    """What to run. `model` is a name or path, for a peer a GGUF file; or `shape` and `scheme`, random weights of ours."""

    kind: str  # llamachat, llama.cpp or transformers
    threads: int
    context: int
    model: str | None = None
    shape: str | None = None
    scheme: str | None = None
    engine: str = "auto"
    dtype: str | None = None
    kv_bits: int | None = None
    profile: bool = False
    lora: tuple[str, ...] = ()  # adapters of a model, as "PATH[:SCALE]"
    lora_rank: int | None = None  # of a random adapter on all linears
    label: str = "llamachat"  # what ours is called in the results


@dataclass(frozen=True)
class Facts:
    """What a runner says of itself once it is loaded; bytes. What it cannot know is 0."""

    name: str
    detail: str
    load_s: float  # of a model in files, imports included; 0 for random weights
    vocabulary: int
    weights: int
    read: int  # of the weights, for each decoded token
    kv: int  # of each token in the cache
    slots: int  # tokens that memory is set aside for
    resident: int = 0


class Ours:
    """This project's engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.cache, self.vocabulary = engine, Cache(engine.slots), engine.config.vocab_size

    def rewind(self, length: int) -> None:
        self.cache.truncate(length)

    def feed(self, ids: list[int], each: bool = False) -> None:
        if each or len(ids) == 1:
            advance(self.engine, self.cache, ids, "all")
        else:
            prefill(self.engine, self.cache, ids)

    def skip(self, ids: list[int]) -> None:
        held, plan = self.cache.slots(np.arange(len(self.cache))), self.cache.plan(len(ids))
        saved = self.engine.save_kv(np.resize(held, len(ids)))
        self.engine.load_kv(plan.slots, plan.positions, saved)
        self.cache.commit(ids)


def ours(spec: Spec, begin: float, prepare: "Prepare | None" = None) -> tuple[Runner, Facts]:
    """A model by name or path as `llamachat complete` would load it, or random weights of a shape."""
    engine, load_s = _random(spec) if spec.shape else _loaded(spec, begin, prepare)
    if spec.lora_rank:
        _adapt(engine, spec.lora_rank)
    return Ours(engine), replace(facts_of(engine, load_s), name=spec.label)


def _adapt(engine: Engine, rank: int) -> None:
    from llamachat.bench.shapes import random_adapter
    from llamachat.models.adapters import Adaptable

    if not isinstance(engine, Adaptable):
        raise UsageError("this engine takes no adapters", remedy="leave out --lora-rank")
    engine.adapt([(random_adapter(engine.config, rank), 1.0)])


def facts_of(engine: Engine, load_s: float) -> Facts:
    """What is to be known of one of our engines."""
    from llamachat.bench.shapes import read_per_token

    weights = getattr(engine, "weights", None)
    sizes = {name: data.nbytes for name, (_, data) in weights.tensors.items()} if weights else {}
    weights, kv = int(getattr(engine, "weight_bytes", 0)), int(getattr(engine, "kv_bytes", 0))
    read = read_per_token(engine.config, sizes) if sizes else weights
    return Facts(
        "llamachat",
        engine.describe(),
        load_s,
        engine.config.vocab_size,
        weights,
        read,
        kv // engine.slots,
        engine.slots,
    )


def _loaded(spec: Spec, begin: float, prepare: "Prepare | None") -> tuple[Engine, float]:
    from llamachat.models.load import load

    options: dict[str, Any] = {
        "engine": spec.engine,
        "dtype": spec.dtype,
        "kv_bits": spec.kv_bits,
        "threads": spec.threads,
    }
    model = load(spec.model, ctx_size=spec.context, prepare=prepare, adapters=spec.lora, remedies=REMEDIES, **options)
    model.require_continuing("bench")
    return model.engine, time.perf_counter() - begin


def _random(spec: Spec) -> tuple[Engine, float]:
    """Raises DoesNotFitError before any of it is made."""
    from llamachat.bench.shapes import config_of, random_weights, weight_bytes
    from llamachat.engines.memory import Plan, available_memory, describe
    from llamachat.engines.native.engine import KV_TYPES, NativeEngine, planned_bytes

    config, scheme, bits = config_of(str(spec.shape)), cast("Scheme", spec.scheme or "int4"), spec.kv_bits or 16
    kv = KV_TYPES[bits]
    _, held, work = planned_bytes(config, {}, spec.context, kv, spec.threads)
    plan = Plan(weight_bytes(config, scheme), held, work, available_memory(), spec.context, bits)
    if not plan.fits:
        cause = f"{spec.shape} needs {describe(plan)}"
        raise DoesNotFitError(cause, "it was not measured", "take less --depth or --prompt, or a smaller --shape")
    weights = random_weights(config, scheme)
    return NativeEngine(config, weights, slots=spec.context, kv=kv, threads=spec.threads), 0.0


class LlamaCpp:
    """llama.cpp through llama-cpp-python."""

    def __init__(self, spec: Spec) -> None:
        llama_cpp = import_peer("llama_cpp", "llama-cpp-python")
        self.version = llama_cpp.__version__
        threads = {"n_threads": spec.threads, "n_threads_batch": spec.threads}
        self._llm = llama_cpp.Llama(spec.model, n_ctx=spec.context, n_batch=512, verbose=False, **threads)
        self.vocabulary = self._llm.n_vocab()

    def rewind(self, length: int) -> None:
        self._llm.n_tokens = length  # eval forgets what is behind

    def feed(self, ids: list[int], each: bool = False) -> None:
        self._llm.eval(ids)


def llama_cpp(spec: Spec, begin: float) -> tuple[Runner, Facts]:
    """A GGUF file, with or without a tokenizer."""
    from llamachat.bench.shapes import read_per_token
    from llamachat.engines.memory import kv_bytes
    from llamachat.formats.gguf import open_gguf

    runner = LlamaCpp(spec)
    load_s = time.perf_counter() - begin
    checkpoint = open_gguf(Path(str(spec.model)))
    config, sizes = checkpoint.config, {name: info.nbytes for name, info in checkpoint.index().items()}
    kv = kv_bytes(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, 1, 16)
    name = f"llama.cpp ({runner.version})"
    read = read_per_token(config, sizes)
    return runner, Facts(name, "", load_s, runner.vocabulary, sum(sizes.values()), read, kv, spec.context)


class Transformers:
    """transformers on the weights of a GGUF file, dequantized to bfloat16."""

    def __init__(self, spec: Spec) -> None:
        transformers, self._torch = import_peer("transformers", "transformers and gguf"), import_peer("torch", "torch")
        self._torch.set_num_threads(spec.threads)
        self.version, file = transformers.__version__, Path(str(spec.model))
        load = transformers.AutoModelForCausalLM.from_pretrained
        self._model = load(file.parent, gguf_file=file.name, dtype=self._torch.bfloat16).eval()
        self.vocabulary, self._past = int(self._model.config.vocab_size), None

    def rewind(self, length: int) -> None:
        if length and self._past is not None:
            self._past.crop(length - self._past.get_seq_length())  # a negative number: so many go
        else:
            self._past = None

    def feed(self, ids: list[int], each: bool = False) -> None:
        with self._torch.inference_mode():
            out = self._model(self._torch.tensor([ids]), past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past = out.past_key_values


def transformers(spec: Spec, begin: float) -> tuple[Runner, Facts]:
    """A GGUF file."""
    runner = Transformers(spec)
    load_s, weights = time.perf_counter() - begin, runner._model.num_parameters() * 2
    name = f"transformers ({runner.version}, bfloat16)"
    return runner, Facts(name, "", load_s, runner.vocabulary, weights, weights, 0, spec.context)


def import_peer(module: str, package: str) -> Any:
    """Raises UsageError where it is not installed."""
    try:
        return __import__(module)
    except ImportError as error:
        raise UsageError(
            f"{package} is not installed", "there is no peer to measure", f"pip install {package}"
        ) from error


PEERS: dict[str, Callable[[Spec, float], tuple[Runner, Facts]]] = {
    "llama.cpp": llama_cpp,
    "transformers": transformers,
}


def serve(text: str, prepare: "Prepare | None" = None) -> None:
    """A runner's process: says what it is, then answers one JSON line with one, until its input ends."""
    from llamachat.bench.machine import resident
    from llamachat.bench.profile import Profile, profiling

    said, sys.stdout = sys.stdout, sys.stderr  # libraries may talk
    begin = time.perf_counter()
    spec = Spec(**json.loads(text))
    with profiling(spec.profile):
        try:
            make = partial(ours, prepare=prepare) if spec.kind == "llamachat" else PEERS[spec.kind]
            runner, facts = make(spec, begin)
            profile = Profile(runner.engine) if spec.profile and isinstance(runner, Ours) else None
        except LlamachatError as error:
            said.write(json.dumps({"error": str(error), "exit_code": error.exit_code}) + "\n")
            return
    course = Course(runner)

    def say(result: dict[str, Any]) -> None:
        said.write(json.dumps(result) + "\n")
        said.flush()

    say(asdict(facts) | {"resident": resident()[0]})
    for line in sys.stdin:
        work = Work(**json.loads(line))
        prefill_s = course.prefill(work.prompt) if work.prompt else 0.0
        course.reach(work.start, work.skip)
        if profile:
            profile.start()
        decode_s = course.decode(work.decode, work.each)
        shares = profile.read(work.decode, decode_s) if profile else {}
        say({"prefill_s": prefill_s, "decode_s": decode_s, "peak": resident()[1], "profile": shares})
