"""Imports run down the house, those inside functions too, without a circle; and what --help may cost."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import llamachat
import quantize
from llamachat.cli.commands import ROWS

LAYERS = [  # from the top: each imports only what stands below it
    "__main__", "cli", "api", "quantize", "bench", "ui", "chat", "generation", "remote", "models", "engines", "formats",
    "tokenizers", "families", "core", "system", "events", "paths", "version", "checks", "errors",
]  # fmt: skip
HEAVY = {
    "numpy",
    "torch",
    "transformers",
    "bitsandbytes",
    "huggingface_hub",
    "tokenizers",
    "sentencepiece",
    "tiktoken",
    "jinja2",
}
TESTS = Path(__file__).parent
PACKAGES = [Path(package.__file__ or "").parent for package in (llamachat, quantize)]
FILES = {
    ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for package in PACKAGES
    for file in package.rglob("*.py")
}
WITH_TORCH = {
    "llamachat.core.model",
    *(
        f"llamachat.engines.torch.{name}"
        for name in (
            "assembly",
            "attention",
            "encoder_decoder",
            "engine",
            "keys_values",
            "linear",
            "links",
            "lora",
            "nibbles",
            "parallel",
            "ranks",
            "workers",
        )
    ),
}


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports(module: str, inside_functions: bool = True) -> frozenset[str]:
    """Names of the modules that one imports; of a package's, the package itself where the name is no module."""
    tree = parsed(FILES[module])
    nodes = list(ast.walk(tree)) if inside_functions else list(at_once(tree))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in FILES else node.module for name in names}
    return frozenset(found)


def at_once(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: not the bodies of functions, nor what type checkers alone see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from at_once(child)


@cache
def loaded(module: str) -> frozenset[str]:
    """Everything that importing a module imports, of ours and of others."""
    seen, left = {module}, [module]
    while left:
        for name in imports(left.pop(), inside_functions=False) - seen:
            seen.add(name)
            left += [name] if name in FILES else []
    return frozenset(name.partition(".")[0] if name not in FILES else name for name in seen)


def layer(module: str) -> str:
    top, _, rest = module.partition(".")
    return top if top == "quantize" else rest.partition(".")[0]


def test_every_module_stands_in_a_layer() -> None:
    assert {layer(module) for module in FILES} - {""} <= {*LAYERS}


def test_imports_run_down() -> None:
    up = [
        f"{module} imports {name}"
        for module in FILES
        for name in imports(module)
        if name in FILES and layer(module) and layer(name) and LAYERS.index(layer(name)) < LAYERS.index(layer(module))
    ]
    assert not up


def test_there_is_no_circle() -> None:
    graph = {module: {name for name in imports(module) if name in FILES} for module in FILES}
    assert [*TopologicalSorter(graph).static_order()]


def test_a_circle_would_be_seen() -> None:
    with pytest.raises(ValueError, match="cycle"):
        [*TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order()]


def test_quantize_is_handed_in_by_the_commands_and_the_api() -> None:
    users = {layer(module) for module in FILES for name in imports(module) if layer(name) == "quantize"}
    assert users == {"cli", "api", "quantize"}


def test_the_screen_sees_events_errors_and_sessions_only() -> None:
    seen = {name for module in FILES if layer(module) == "ui" for name in imports(module) if name in FILES}
    assert {layer(name) for name in seen} == {"ui", "events", "errors", "system", "chat"}
    assert {name for name in seen if layer(name) == "chat"} == {"llamachat.chat.session"}


def test_a_session_touches_no_engine_cache_or_tokenizer() -> None:
    below = {
        name for module in ("kept_dialog", "session") for name in imports(f"llamachat.chat.{module}") if name in FILES
    }
    assert {layer(name) for name in below} == {"chat", "errors", "events"}
    assert not below & {"llamachat.chat.local", "llamachat.chat.window", "llamachat.chat.insight"}


def test_nothing_above_the_engine_imports_torch() -> None:
    users = {module for module in FILES if "torch" in loaded(module)}
    own = {f"quantize.{name}" for name in ("gptq", "mixing", "passage", "rounding", "sensitivity", "threads")}
    assert users == WITH_TORCH | own


def test_the_core_needs_nothing_else_of_the_package() -> None:
    seen = {layer(name) for module in FILES if layer(module) == "core" for name in imports(module) if name in FILES}
    assert seen <= {"core", "checks", "errors"}


def test_the_core_runs_a_model_by_itself() -> None:
    """In float32, from weights to text ids, in a process that imports nothing else of the package."""
    code = """if True:
        import sys
        import numpy as np
        from llamachat.core.cache import Cache
        from llamachat.core.generate import generate, prefill
        from llamachat.core.model import PlainEngine
        from llamachat.core.sampler import Sampler
        from llamachat.core.sampling import SamplingParams
        from llamachat.core.spec import ModelSpec
        from llamachat.core.tensors import FloatTensor
        spec = ModelSpec(30, 16, 24, 2, 4, 2, 8, 64)
        rng = np.random.default_rng(0)
        shapes = spec.tensor_shapes().items()
        tensors = [(name, FloatTensor(rng.normal(size=shape).astype(np.float32))) for name, shape in shapes]
        engine, cache, prompt = PlainEngine.build(spec, tensors, 16), Cache(16), [1, 2, 3]
        sampler = Sampler(SamplingParams(temperature=0), spec.vocab_size)
        tokens = generate(engine, cache, prefill(engine, cache, prompt), sampler, stop_ids=[], max_tokens=5)
        assert len([token.id for token in tokens]) == 5
        print(*(name for name in sys.modules if name.startswith("llamachat.")))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {layer(name) for name in done.stdout.split()} == {"core", "checks", "errors", "version"}


def test_the_core_is_an_evenings_reading() -> None:
    lines = sum(len(file.read_text().splitlines()) for module, file in FILES.items() if layer(module) == "core")
    assert lines <= 2200


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['llamachat', '--help']\nfrom llamachat.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "llamachat.cli.main" in modules and not modules & HEAVY


def test_a_command_loads_no_other_one() -> None:
    code = "import sys; sys.argv = ['llamachat', 'complete', '--help']\nfrom llamachat.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows = {f"llamachat.cli.{module}" for module, *_ in ROWS.values()}
    assert rows <= FILES.keys() and rows & {*done.stdout.split()} == {"llamachat.cli.complete"}


def test_what_runs_here_loads_nothing_of_servers() -> None:
    """Only what is of a server imports `remote` when it is itself imported."""
    found = {
        module
        for module, file in FILES.items()
        for node in parsed(file).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llamachat.remote")
    }
    assert {module for module in found if layer(module) != "remote"} == {
        "llamachat.chat.latest",
        "llamachat.chat.remote",
        "llamachat.generation.in_flight",
        "llamachat.generation.served",
        "llamachat.generation.until_loop",
    }


def test_the_readme_reads_the_core_in_an_order_that_imports_only_what_was_read() -> None:
    text = (TESTS.parent / "README.md").read_text()
    files = re.findall(r"`(\w+)\.py`", text.split("in this order:")[1].split("It runs a model by itself")[0])
    core = {name.rpartition(".")[2] for name in FILES if name.startswith("llamachat.core.")}
    assert sorted(files) == sorted(core)
    for at, name in enumerate(files):
        inside = [each for each in imports(f"llamachat.core.{name}") if each.startswith("llamachat.core.")]
        assert {each.rpartition(".")[2] for each in inside} <= {*files[:at]}, name


OTHERS = {
    "torch",
    "metas",
    "meta",
    "os",
    "sys",
    "dataclasses",
}  # of other projects, whose private names tests may have to use


def private_names(tree: ast.AST) -> Iterator[str]:
    """What begins with one underscore and is of another object than a test's own."""
    for node in ast.walk(tree):
        name, where = "", ""
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            name, where = node.attr, ast.unparse(node.value)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("llamachat", "quantize")):
            name, where = next((each.name for each in node.names if each.name.startswith("_")), ""), node.module or ""
        elif isinstance(node, ast.Call) and len(node.args) == 3 and ast.unparse(node.func).endswith("setattr"):
            target = ast.literal_eval(node.args[1]) if isinstance(node.args[1], ast.Constant) else ""
            name, where = str(target), ast.unparse(node.args[0])
        elif isinstance(node, ast.Constant) and re.fullmatch(r"(llamachat|quantize)\.[\w.]+", str(node.value)):
            where, _, name = str(node.value).rpartition(".")
        private = name.startswith("_") and not name.startswith("__") and name not in ("_fields_", "_replace", "_asdict")
        if private and where not in ("self", "cls", "super()") and where.partition(".")[0] not in OTHERS:
            yield f"{where}.{name}"


def test_private_names_are_seen() -> None:
    source = """
from llamachat.core.cache import _one
engine._two
self._mine
monkeypatch.setattr(bars, "_three", 1)
patch("llamachat.core.cache._four")
"""
    assert [name.rpartition(".")[2] for name in private_names(ast.parse(source))] == ["_one", "_two", "_three", "_four"]


def test_no_test_reaches_into_what_is_private() -> None:
    found = [
        f"{file.relative_to(TESTS)}: {name}"
        for file in sorted(TESTS.rglob("*.py"))
        for name in private_names(ast.parse(file.read_text()))
    ]
    assert found == []
