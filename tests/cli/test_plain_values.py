"""Values of flags that are taken without typer's judge: always as it would take them."""

from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.cli.defaults import keys_of
from llamachat.cli.main import app
from llamachat.cli.plain_values import UNSURE, plainly

TEXTS = st.one_of(
    st.sampled_from(
        ["", "0", "00", "1", "-1", "16", "15", "1.5", "-0", "+1", " 1", "1e3", "1_0", "nan", "inf", "auto", "cpu", "٣"]
    ),
    st.from_regex(r"-?[0-9]{1,17}(\.[0-9]{0,17})?", fullmatch=True),
)


@pytest.fixture(scope="module")
def chat() -> tuple[dict[str, Any], Any]:
    """Its flags by name, and the context that typer judges in."""
    command: Any = typer.main.get_command(app).commands["chat"]  # type: ignore[attr-defined]
    return keys_of(command), command.make_context("chat", [], resilient_parsing=True)


@settings(max_examples=80, deadline=None)
@given(text=TEXTS, data=st.data())
def test_what_is_plain_is_what_typer_makes_of_it(
    chat: tuple[dict[str, Any], Any], text: str, data: st.DataObject
) -> None:
    flags, ctx = chat
    flag = flags[data.draw(st.sampled_from(sorted(flags)))]
    value: Any = data.draw(st.sampled_from([text, None, flag.default]))
    value = [text] * data.draw(st.integers(0, 2)) if flag.multiple else value
    ours = plainly(value, flag)
    judge = type(flag).get_runtime_param(flag)
    assert ours is UNSURE or repr(ours) == repr(judge.coerce(value, param=flag, ctx=ctx))


@pytest.mark.parametrize(
    ("name", "text", "value"), [("max-tokens", "1", 1), ("temperature", "0", 0.0), ("seed", "7", 7)]
)
def test_numbers_are_plain(chat: tuple[dict[str, Any], Any], name: str, text: str, value: float) -> None:
    assert plainly(text, chat[0][name]) == value
    assert plainly("0" if name == "max-tokens" else "x", chat[0][name]) is UNSURE
