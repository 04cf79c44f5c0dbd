"""The commands by name. One is imported when it is asked for: all of them take as long to import as a model to load."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import typer

from llamachat.cli import epilogs
from llamachat.cli.defaults import Configured

# name -> module here, function or group in it, and how it is made a command; those for every day first
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": ("chat", "chat", {"cls": Configured, "epilog": epilogs.CHAT}),
    "complete": ("complete", "complete", {"cls": Configured, "epilog": epilogs.COMPLETE}),
    "classify": ("classify", "classify", {"cls": Configured, "epilog": epilogs.CLASSIFY}),
    "tag": ("tag", "tag", {"cls": Configured, "epilog": epilogs.TAG}),
    "extract": ("extract", "extract", {"cls": Configured, "epilog": epilogs.EXTRACT}),
    "embed": ("embed", "embed", {"cls": Configured, "epilog": epilogs.EMBED}),
    "sessions": ("sessions", "sessions_app", {}),
    "models": ("models", "models_app", {}),
    "config": ("config", "config_app", {}),
    "quantize": ("quantize", "quantize_model", {"epilog": epilogs.QUANTIZE}),
    "eval": ("evaluate", "evaluate_model", {"epilog": epilogs.EVALUATE}),
    "bench": ("bench", "bench", {"epilog": epilogs.BENCH}),
    # what fingers know from ollama, which does the same here; --help names these in one line
    "run": ("aliases", "run", {"cls": Configured, "epilog": epilogs.RUN, "hidden": True}),
    "pull": ("models", "pull_model", {"epilog": epilogs.PULL, "hidden": True}),
    "ls": ("models", "list_models", {"epilog": epilogs.LIST, "hidden": True}),
    "list": ("models", "list_models", {"epilog": epilogs.LIST, "hidden": True}),
    "show": ("models", "show_model", {"epilog": epilogs.SHOW, "hidden": True}),
    "rm": ("models", "remove_model", {"epilog": epilogs.REMOVE, "hidden": True}),
}


class Commands(Mapping[str, Any]):
    """Name -> typer's command, made at its first use."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _command(name, *ROWS[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(ROWS)

    def __len__(self) -> int:
        return len(ROWS)

    def __contains__(self, name: object) -> bool:
        return name in ROWS


def _command(name: str, module: str, attribute: str, how: dict[str, Any]) -> Any:
    found = getattr(import_module(f"llamachat.cli.{module}"), attribute)
    app = found
    if not isinstance(found, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name, **how)(found)
    command = typer.main.get_command(app)
    command.name = name
    return command
