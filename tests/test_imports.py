"""The direction of imports, each module in a fresh interpreter, and what --help may cost."""

import subprocess
import sys
from pathlib import Path

import pytest

import llamachat

HEAVY = {
    "torch",
    "transformers",
    "bitsandbytes",
    "huggingface_hub",
    "tokenizers",
    "sentencepiece",
    "tiktoken",
    "jinja2",
}
PACKAGE = Path(llamachat.__file__).parent
BELOW = {"engine.torch_engine", "engine.model", "engine.linear"}  # where torch may live
MODULES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in PACKAGE.rglob("*.py")}
ABOVE_ENGINE = sorted(name for name in MODULES - BELOW if not name.endswith(("__init__", "__main__", "_worker")))
LIGHT = [
    "cli",
    "commands.quantize",
    "commands.evaluate",
    "commands.bench",
    "catalog",
    "errors",
    "config",
    "commands.options",
    "commands.models",
    "ui.app",
]
ALLOWED = {  # what of llamachat a layer may load; the layers above it are not in there
    "errors": "",
    "events": "",
    "tensors": "",
    "config": "errors",
    "cache": "errors",
    "sample": "config errors",
    "engine": "cache config errors",
    "textfile": "",
    "ui.app": "errors events textfile ui",
    "tokenizer": "errors tokenizer",
    "generate": "cache config draft engine errors sample",
}


def loaded(code: str) -> set[str]:
    """Names of all modules in a fresh interpreter after running code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ABOVE_ENGINE)
def test_nothing_above_the_engine_imports_torch(name: str) -> None:
    assert "torch" not in loaded(f"import llamachat.{name}")


@pytest.mark.parametrize("name", LIGHT)
def test_what_help_touches_imports_nothing_heavy(name: str) -> None:
    assert not loaded(f"import llamachat.{name}") & HEAVY


@pytest.mark.parametrize("name", ALLOWED)
def test_a_layer_imports_only_what_lies_below_it(name: str) -> None:
    prefix = "llamachat."
    ours = {module.removeprefix(prefix) for module in loaded(f"import llamachat.{name}") if module.startswith(prefix)}
    allowed = {name, *name.split("."), *ALLOWED[name].split()}
    assert {module for module in ours if module.split(".")[0] not in allowed} == set()


def test_help_loads_neither_torch_nor_transformers_nor_the_hub() -> None:
    run = ["import sys; sys.argv = ['llamachat', '--help']", "from llamachat.cli.main import main", "try: main()"]
    assert not loaded("\n".join([*run, "except SystemExit: pass"])) & HEAVY
