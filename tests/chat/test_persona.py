"""A persona's file is read strictly, and names lead nowhere but to such files."""

from pathlib import Path

import pytest

from llamachat.chat import persona
from llamachat.chat.library import Library
from llamachat.chat.persona import Persona
from llamachat.errors import ConfigError, UsageError

FULL = """
system = "You are a pirate."
model = "smollm2-135m"
sampling = { temperature = 0.9, top_k = 40, seed = 1 }
messages = [["Who are you?", "A pirate."], ["Where?", "At sea."]]
think = "off"
"""


def write(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")


def test_every_key_is_read_and_all_may_be_left_out(tmp_path: Path) -> None:
    write(tmp_path, "pirate", FULL)
    write(tmp_path, "empty", "")
    assert persona.load("pirate", tmp_path) == Persona(
        "pirate",
        "You are a pirate.",
        {"temperature": 0.9, "top_k": 40, "seed": 1},
        (("Who are you?", "A pirate."), ("Where?", "At sea.")),
        "smollm2-135m",
        "off",
    )
    assert persona.load("empty", tmp_path) == Persona("empty")
    assert persona.names(tmp_path) == ["empty", "pirate"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "sytem = 'x'",
            "unknown key sytem = 'x' in .*p.toml; the persona cannot be used; known keys: system, sampling",
        ),
        ("name = 'x'", "unknown key name"),
        ("system = 3", "system = 3 in "),
        ("model = ['a']", "model = "),
        ("think = true", "think = True in .*p.toml; the persona cannot be used; write one of auto, on, off"),
        ("think = 'no'", "think = 'no' in "),
        ("sampling = 3", "sampling = 3"),
        ("sampling = { warmth = 1 }", "sampling in .*p.toml: sampling parameter is 'warmth'"),
        ("sampling = { self = 1 }", "sampling parameter is 'self'"),
        ("sampling = { temperature = -1 }", "sampling in .*p.toml: temperature is -1"),
        ("sampling = { top_k = 1.5 }", "top_k is 1.5"),
        ("sampling = { logit_bias = { } }", "sampling = "),
        ("messages = ['a', 'b']", "messages = "),
        ("messages = [['a']]", "messages = "),
        ("messages = [['a', 1]]", "messages = "),
        ("messages = 'ab'", "messages = "),
        ("system", "p.toml cannot be read"),
        (f"system = {'9' * 5000}", "p.toml cannot be read"),
        ("x = " + "[" * 9999, "p.toml cannot be read"),
        ("#" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_what_is_no_persona_is_one_line_that_names_the_file(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path, "p", text)
    with pytest.raises(ConfigError, match=says) as caught:
        persona.load("p", tmp_path)
    assert "p.toml" in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["", "..", "../p", "a/b", "a\0b", ".hidden", "x" * 300, "p\n"])
def test_a_name_leads_out_of_no_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path, "p", "")
    with pytest.raises(UsageError, match="no persona is called"):
        persona.load(name, tmp_path / "personas")


def test_an_unknown_name_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"make .*pirate\.toml"):
        persona.load("pirate", tmp_path)
    write(tmp_path, "pirate", FULL)
    with pytest.raises(UsageError, match=r"did you mean pirate\?"):
        persona.load("pirat", tmp_path)
    with pytest.raises(UsageError, match="there are pirate"):
        persona.load("zzz", tmp_path)


def test_the_library_lists_models_and_personas_also_broken_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    write(persona.folder(), "pirate", FULL)
    write(persona.folder(), "broken", "system = 1")
    (_, reason), pirate = Library().personas()
    assert "system = 1" in reason and pirate == ("pirate", "You are a pirate.")
    assert Library().persona("pirate").model == "smollm2-135m"
    assert all(help for _, help in Library().models())
