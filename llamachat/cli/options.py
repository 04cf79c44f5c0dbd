"""The command-line flags that chat and complete share, each with its environment variable. Imports nothing heavy."""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llamachat.cli.shell_words import models
from llamachat.engines.select import ENGINES
from llamachat.engines.world import processes


def one_of(kind: str, names: Iterable[str]) -> Any:
    """The type (a StrEnum) of a flag that takes one of a registry's names."""
    kinds: Any = StrEnum
    return kinds(kind, [(name, name) for name in names])


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


if TYPE_CHECKING:
    from llamachat.core.spec import Dtype

    EngineName = StrEnum
else:
    EngineName = one_of("EngineName", ("auto", *ENGINES))
AUTO = EngineName("auto")


class DtypeName(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Overflow(StrEnum):
    roll = "roll"
    refill = "refill"
    stop = "stop"


class Think(StrEnum):
    auto = "auto"
    on = "on"
    off = "off"


class ThemeName(StrEnum):
    auto = "auto"
    dark = "dark"
    light = "light"
    none = "none"


def examples(*lines: tuple[str, str], note: str = "") -> str:
    """The end of a help page: command lines, each with a word on it, then a note."""
    width = max((len(line) for line, word in lines if word and len(line + word) < 73), default=0)
    told = [
        f"  {line:{width}}  {word}".rstrip() if max(width, len(line)) + len(word) < 74 else f"  {line}\n      {word}"
        for line, word in lines
    ]
    return "\n".join(["Examples:", *told, *(["", note] if note else [])]).replace("[", r"\[")


def flag(*names: str, help: str, panel: str, **limits: Any) -> Any:
    """A typer option that the environment variable LLAMACHAT_<LONG NAME> sets as well."""
    long = next(name for name in names if name.startswith("--"))
    variable = "LLAMACHAT_" + long[2:].partition("/")[0].replace("-", "_").upper()
    return typer.Option(*names, help=help, rich_help_panel=panel, envvar=variable, show_envvar=False, **limits)


@dataclass
class Told:
    """What has been said on the command line, for whoever reports how the command ended (the context's `obj`)."""

    verbose: bool = False


def _tell(ctx: typer.Context, verbose: bool) -> bool:
    if isinstance(ctx.obj, Told):
        ctx.obj.verbose |= verbose
    return verbose


MODEL, SERVER, SAMPLING, THINKING, RUN = "Model and context", "Server", "Sampling", "Thinking", "Running"
DIALOG, SCREEN = "Dialog", "Screen"  # of chat alone


@dataclass(frozen=True)
class Loading:
    """Values of the flags of every command that loads a model; None means that the model's own default holds."""

    model: Annotated[
        str | None,
        flag(
            "--model",
            "-m",
            help="Name from `llamachat models list`, hf:OWNER/REPO, or a path.",
            panel=MODEL,
            autocompletion=models,
        ),
    ] = None
    lora: Annotated[
        list[str],
        flag("--lora", help="Adapter: a PEFT folder (repeatable; they add up).", panel=MODEL, metavar="PATH[:SCALE]"),
    ] = field(default_factory=list)
    ctx_size: Annotated[
        int | None,
        flag("--ctx-size", min=16, help="Context in tokens. Default: the model's, at most 8192.", panel=MODEL),
    ] = None
    kv_bits: Annotated[
        int | None,
        flag("--kv-bits", help="Bits of a cached value: 4, 8, 16 or 32. Keys have as many, beside 4: 8.", panel=MODEL),
    ] = None
    device: Annotated[Device, flag("--device", help="Where the model runs.", panel=RUN)] = Device.auto
    engine: Annotated[EngineName, flag("--engine", help="Which engine runs it.", panel=RUN)] = AUTO
    dtype: Annotated[
        DtypeName,
        flag(
            "--dtype",
            help="What torch computes in; the native engine has its own types, so all but auto is torch.",
            panel=RUN,
        ),
    ] = DtypeName.auto
    threads: Annotated[int | None, flag("--threads", min=1, help="Default: all cores.", panel=RUN)] = None
    tensor_parallel: Annotated[
        int | None,
        flag("--tensor-parallel", min=1, help="Split the model over N processes, or GPUs.", panel=RUN, metavar="N"),
    ] = None
    offline: Annotated[bool, flag("--offline", help="Never use the network.", panel=RUN)] = False
    force: Annotated[bool, flag("--force", help="Load even what does not seem to fit in memory.", panel=RUN)] = False
    verbose: Annotated[bool, flag("--verbose", "-v", help="Say more on stderr.", panel=RUN, callback=_tell)] = False

    @property
    def compiles(self) -> bool:
        """Whether the native engine may be wanted, and its compiling is to be told; verbose loading tells it itself."""
        torch = self.engine == "torch" or self.device == "cuda" or processes(self.tensor_parallel) > 1
        return not (torch or self.dtype_asked or self.verbose)

    @property
    def dtype_asked(self) -> "Dtype | None":
        """None: what the model's configuration or the engine has."""
        return None if self.dtype == "auto" else cast("Dtype", self.dtype.value)


@dataclass(frozen=True)
class Options(Loading):
    """And of those that chat and complete share."""

    system: Annotated[str | None, flag("--system", "-s", help="System prompt.", panel=MODEL)] = None
    system_file: Annotated[
        Path | None, flag("--system-file", help="File that holds the system prompt.", panel=MODEL)
    ] = None
    server: Annotated[
        str | None,
        flag(
            "--server",
            help="Ask this OpenAI-compatible server, of its models the one named with -m. '': none, run here.",
            panel=SERVER,
            metavar="URL",
        ),
    ] = None
    key_env: Annotated[
        str | None,
        flag("--key-env", help="Environment variable that holds the --server's key.", panel=SERVER, metavar="VARIABLE"),
    ] = None
    insecure: Annotated[
        bool, flag("--insecure", help="Do not check the --server's certificate; on this machine alone.", panel=SERVER)
    ] = False
    overflow: Annotated[
        Overflow,
        flag(
            "--overflow",
            help="When the context is full: roll (the oldest turns go), refill (they go, the rest is computed anew), stop.",
            panel=MODEL,
        ),
    ] = Overflow.roll
    temperature: Annotated[
        float | None,
        flag("--temperature", "--temp", help="0 takes the likeliest token, after penalties.", panel=SAMPLING),
    ] = None
    top_k: Annotated[int | None, flag("--top-k", help="Keep the K likeliest tokens; 0: all.", panel=SAMPLING)] = None
    top_p: Annotated[
        float | None, flag("--top-p", help="Keep the likeliest tokens that make up P of the mass.", panel=SAMPLING)
    ] = None
    min_p: Annotated[
        float | None, flag("--min-p", help="Keep tokens at least P times as likely as the likeliest.", panel=SAMPLING)
    ] = None
    repetition_penalty: Annotated[
        float | None,
        flag(
            "--repetition-penalty", "--repeat-penalty", help="Above 1 makes seen tokens rarer (CTRL).", panel=SAMPLING
        ),
    ] = None
    presence_penalty: Annotated[
        float | None, flag("--presence-penalty", help="Subtracted once from each generated token.", panel=SAMPLING)
    ] = None
    frequency_penalty: Annotated[
        float | None, flag("--frequency-penalty", help="Subtracted for each time it was generated.", panel=SAMPLING)
    ] = None
    seed: Annotated[int | None, flag("--seed", help="Same seed, same text.", panel=SAMPLING)] = None
    max_tokens: Annotated[
        int | None,
        flag("--max-tokens", "-n", min=1, help="Default: to the end of the turn or context.", panel=SAMPLING),
    ] = None
    stop: Annotated[list[str], flag("--stop", help="End the answer before this text (repeatable).", panel=SAMPLING)] = (
        field(default_factory=list)
    )
    allow_loops: Annotated[
        bool,
        flag("--allow-loops", help="Do not end an answer that says the same over and over.", panel=SAMPLING),
    ] = False
    think: Annotated[
        Think | None,
        flag(
            "--think", help="Whether the model thinks before it answers; auto: as its template has it.", panel=THINKING
        ),
    ] = None
    think_budget: Annotated[
        int | None,
        flag("--think-budget", min=0, help="At so many tokens a thought is ended, the answer begins.", panel=THINKING),
    ] = None
    show_thinking: Annotated[
        bool,
        flag(
            "--show-thinking/--hide-thinking",
            help="Show thoughts: in a chat unfolded, of complete on stderr.",
            panel=THINKING,
        ),
    ] = False

    def sampling(self) -> dict[str, Any]:
        """The SamplingParams fields that were given."""
        names = (
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        )
        values = {name: getattr(self, name) for name in (*names, "seed")}
        return {name: value for name, value in values.items() if value is not None}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `options` (Loading, or Options) all of its fields as flags."""
    signature = inspect.signature(command, eval_str=True)
    kind: type[Loading] = signature.parameters["options"].annotation
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "options"]
    common = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=f.type,
            default=[] if f.default is MISSING else f.default,
        )
        for f in fields(kind)
    ]
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        options = kind(**{f.name: values.pop(f.name) for f in fields(kind)})
        command(**values, options=options)

    parameters = [*keyword_only, *common]
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped
