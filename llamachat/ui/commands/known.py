"""What fingers know from other programs and from flags: what it means here, and what there is in place of what there is not."""

import difflib
from collections.abc import Iterable

LEAVING = ("exit", "quit", "bye")  # as a whole message, without a slash
SHORT = {  # of parameters: as flags and ollama call them
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
    "num_predict": "max_tokens",
    "n": "max_tokens",
}
_AT_START = "it is set when the chat starts: llamachat --{}"
INSTEAD = {  # slash commands that there are not
    "h": "/help lists the commands",
    "list": "/model lists the models",
    "ls": "/model lists the models",
    "models": "/model lists the models",
    "pull": "/model NAME goes on with another model",
    "ps": "/stats shows what runs",
    "status": "/stats shows what runs",
    "config": "/set shows and changes the parameters",
    "reset": "/clear begins anew",
    "resume": "/load NAME opens a saved dialog, /sessions lists them",
    "rewind": "/undo goes back",
    "rename": "/save NAME gives the dialog a name",
    "search": "`llamachat sessions search TEXT` looks into all dialogs",
    "rm": "/delete NAME deletes a dialog",
    "compact": "the oldest turns go by themselves when the context is full; /context shows what is seen",
    "image": "/read takes text alone",
    "audio": "/read takes text alone",
    "glob": "/read takes patterns, too",
    "stop": "Ctrl-C stops an answer",
    "format": "`llamachat complete --schema` follows a JSON schema",
    "version": "`llamachat --version` tells it",
}
INSTEAD_OF_SET = {  # what /set takes elsewhere
    "history": "dialogs are kept unless the chat starts with --no-history",
    "nohistory": _AT_START.format("no-history"),
    "wordwrap": "lines break where the window ends; /copy gives the text as it is",
    "nowordwrap": "lines break where the window ends; /copy gives the text as it is",
    "format": INSTEAD["format"],
    "noformat": INSTEAD["format"],
    "model": "/model NAME goes on with another",
    "persona": "/persona NAME begins anew with one",
    "num_ctx": _AT_START.format("ctx-size"),
    "num_thread": _AT_START.format("threads"),
    **{name.replace("-", "_"): _AT_START.format(name) for name in (
        "ctx-size", "stop", "kv-bits", "device", "engine", "dtype", "threads", "overflow", "theme", "plain", "vi", "offline",
        "pack-cache", "tensor-parallel", "server", "force",
    )},
}  # fmt: skip
_KNOWN = "`llamachat models show NAME` tells what is known of a model"
INSTEAD_OF_SHOW = dict.fromkeys(("license", "licence", "modelfile", "template"), _KNOWN)
MEANT_BY_SET = {  # what is said to /set elsewhere, as it is said here
    "nothink": "think off",
    "verbose": "stats on",
    "quiet": "stats off",
}
MEANT_BY_SHOW = {"info": "model", "parameter": "parameters", "all": ""}


def parameter(name: str) -> str:
    """A parameter's own name for one that may be written as its flag, or shorter."""
    plain = name.lower().lstrip("-").replace("-", "_")
    return SHORT.get(plain, plain)


def hint(name: str, names: Iterable[str], instead: dict[str, str], sign: str = "", rest: str = "") -> str:
    """What there is instead of a name, or is meant by it; "" where nothing is like it."""
    plain = name[:40].lower().replace("-", "_")
    if plain in instead:
        return instead[plain]
    near = difflib.get_close_matches(plain, [*names], n=1)
    return f"did you mean {sign}{near[0]}{rest}?" if near else ""
