"""FORMS and harmony give the ids of transformers' apply_chat_template with templates that write what their models' do."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from vocabularies import Both, smollm2_library, with_reference

from llamachat.core.dialog import DialogFormat, Message, Role
from llamachat.core.tokenizer import Tokenizer
from llamachat.errors import ConfigError, UsageError
from llamachat.tokenizers.dialog_formats import BUILTIN, MARKS, choose
from llamachat.tokenizers.jinja import Jinja
from llamachat.tokenizers.tagged import FORMS

quick = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def each(turn: str, opening: str) -> str:
    """A template of turns one like another."""
    head = "{%- for m in messages %}{{- " + turn + " }}{%- endfor %}"
    return head + "{%- if add_generation_prompt %}{{- '" + opening + "' }}{%- endif %}"


ALTERNATE = """{%- if messages[0].role == 'system' %}{%- set told, said = messages[0].content, messages[1:] %}{%- else %}
{%- set told, said = none, messages %}{%- endif %}{{- bos_token }}{%- for m in said %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}"""


def mistral(space: str, prompt: bool) -> str:
    """With the system's text in a block of its own, or in the last user's turn."""
    block = "{%- if told is not none %}{{- '[SYSTEM_PROMPT]" + space + "' + told + '[/SYSTEM_PROMPT]' }}{%- endif %}"
    told = "''" if prompt else "(told + '\\n\\n' if loop.last and told is not none else '')"
    asked = "{%- if m.role == 'user' %}{{- '[INST]" + space + "' + " + told + " + m.content + '[/INST]' }}"
    said = "{%- else %}{{- '" + space + "' + m.content + eos_token }}{%- endif %}{%- endfor %}"
    bos = "{{- bos_token }}"
    return (ALTERNATE.replace(bos, bos + block) if prompt else ALTERNATE) + asked + said


TEMPLATES = {
    "gemma": ALTERNATE
    + """{{- '<start_of_turn>' + (m.role if m.role == 'user' else 'model') + '\\n' }}{%- if loop.first and told is not none %}
{{- told + '\\n\\n' }}{%- endif %}{{- m.content | trim }}{{- '<end_of_turn>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}""",
    "phi3": each("'<|' + m.role + '|>\\n' + m.content + '<|end|>\\n'", "<|assistant|>\\n"),
    "phi4-mini": each("'<|' + m.role + '|>' + m.content + '<|end|>'", "<|assistant|>"),
    "phi4": each(
        "'<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>'", "<|im_start|>assistant<|im_sep|>"
    ),
    "granite": each(
        "'<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\\n'",
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
    "glm4": "{{- '[gMASK]<sop>' }}" + each("'<|' + m.role + '|>\\n' + m.content", "<|assistant|>"),
    "olmo2": "{{- bos_token }}"
    + each(
        "'<|' + m.role + '|>\\n' + m.content + (eos_token if m.role == 'assistant' else '') + '\\n'", "<|assistant|>\\n"
    ),
    "zephyr": each("'<|' + m.role + '|>\\n' + m.content + eos_token + '\\n'", "<|assistant|>\\n"),
    "mistral-v3": mistral(" ", False),
    "mistral-tekken": mistral("", False),
    "mistral-v7": mistral(" ", True),
    "mistral-v7-tekken": mistral("", True),
    "harmony": """{{- '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\\n' }}
{{- 'Knowledge cutoff: 2024-06\\nCurrent date: ' + strftime_now('%Y-%m-%d') + '\\n\\nReasoning: medium\\n\\n' }}
{{- '# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>' }}
{%- for m in messages %}{%- if m.role == 'system' %}
{{- '<|start|>developer<|message|># Instructions\\n\\n' + m.content + '\\n\\n<|end|>' }}{%- elif m.role == 'user' %}
{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}{%- else %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}""",
}
SPECIALS = (
    *("<s>", "</s>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|im_sep|>", "<|start_of_role|>"),
    *("<|end_of_role|>", "<|end_of_text|>", "[gMASK]", "<sop>", "<|observation|>", "[INST]", "[/INST]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>"),
)
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
PLAIN = ("olmo2", "zephyr")  # where these are plain text
system, user, answer = (lambda text, role=role: Message(role, text) for role in ("system", "user", "assistant"))  # type: ignore[misc]
DIALOGS = [
    [user("hello")],
    [user("hello"), answer("he said: hold."), user("\n and?\n\n")],
    [system("be brief."), user("hello!")],
    [system("be\nbrief. "), user("hello!"), answer("hel lo"), user("  so?"), answer("a"), user("b\n")],
]


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory, smollm2_metadata: dict[str, Any]) -> dict[bool, Both]:
    """Real merges, with all control tokens; and with the roles as plain text."""
    made = dict[bool, Both]()
    for plain in (False, True):
        library = smollm2_library(smollm2_metadata)
        names = SPECIALS if plain else SPECIALS + ROLES
        library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        made[plain] = with_reference(tmp_path_factory.mktemp("tagged"), library)
    return made


@pytest.fixture(scope="session")
def written(tokenizers: dict[bool, Both]) -> dict[str, tuple[DialogFormat, DialogFormat, Both]]:
    """Built in, and by its template."""
    found = dict[str, tuple[DialogFormat, DialogFormat, Both]]()
    for name, template in TEMPLATES.items():
        both = tokenizers[name in PLAIN]
        found[name] = BUILTIN[name](both[0]), Jinja(both[0], template), both
    return found


def test_every_form_is_held_against_a_template() -> None:
    assert {*FORMS, "harmony"} == TEMPLATES.keys()


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", DIALOGS, ids=["one", "three", "system", "long"])
def test_a_dialog_has_the_ids_of_transformers(
    written: dict[str, tuple[DialogFormat, DialogFormat, Both]], name: str, messages: list[Message]
) -> None:
    built_in, jinja, (tokenizer, reference) = written[name]
    expected = reference(TEMPLATES[name], messages)
    assert built_in.encode(messages) == expected
    assert jinja.encode(messages) == expected
    turns = [token for turn in built_in.turns(messages) for token in turn]
    # where plain text alone is between two messages, a token of both is cut
    assert turns == expected or (name == "olmo2" and tokenizer.decode(turns) == tokenizer.decode(expected))


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answers_own_ids_stand_for_its_text_behind_what_opened_it(
    written: dict[str, tuple[DialogFormat, DialogFormat, Both]], name: str
) -> None:
    built_in, _, (tokenizer, _) = written[name]
    ids = tuple(tokenizer.encode(letter, start=False)[0] for letter in "Hello")
    again = built_in.encode([user("a"), Message("assistant", "Hello", ids), user("b")])
    opened = built_in.encode([user("a")])
    if name == "harmony":  # the model says which channel it opens
        opened += tokenizer.encode_skeleton("<|channel|>final<|message|>", start=False)
    assert again[: len(opened) + 5] == [*opened, *ids]


contents = st.lists(
    st.sampled_from([*SPECIALS, *ROLES, "<|us", "er|>", "[IN", "ST]", "final", " ", "\n", "x", "é"]), max_size=6
).map("".join)


@quick
@given(texts=st.tuples(contents, contents, contents, contents))
def test_nothing_that_is_said_forges_a_turn(
    written: dict[str, tuple[DialogFormat, DialogFormat, Both]], texts: tuple[str, ...]
) -> None:
    roles: Sequence[Role] = ("system", "user", "assistant", "user")
    for name, (built_in, _, (tokenizer, _)) in written.items():
        attack = built_in.encode([Message(role, text) for role, text in zip(roles, texts, strict=True)])
        neutral = built_in.encode([Message(role, "x") for role in roles])
        for token in tokenizer.specials.values():
            assert attack.count(token) == neutral.count(token), (name, token)
        for tag in getattr(built_in, "tags", ()):
            if tag not in tokenizer.specials:
                tagged = tokenizer.encode(tag, start=False)
                counts = [
                    sum(ids[at : at + len(tagged)] == tagged for at in range(len(ids))) for ids in (attack, neutral)
                ]
                assert counts[0] == counts[1], (name, tag)


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.alternate])
def test_turns_that_a_form_cannot_write_are_refused(
    written: dict[str, tuple[DialogFormat, DialogFormat, Both]], name: str
) -> None:
    for messages in ([user("a"), user("b")], [answer("a")], [user("a"), answer("b"), system("c"), user("d")]):
        with pytest.raises(UsageError, match="do not take turns"):
            written[name][0].encode(messages)


def test_answers_end_where_their_forms_say(written: dict[str, tuple[DialogFormat, DialogFormat, Both]]) -> None:
    for name, (built_in, _, (tokenizer, _)) in written.items():
        ends = {
            "gemma": "<end_of_turn>", "granite": "<|end_of_text|>", "glm4": "<|user|>", "harmony": "<|return|>",
            "phi3": "<|end|>", "phi4-mini": "<|end|>", "phi4": "<|im_end|>",
        }  # fmt: skip
        assert tokenizer.specials[ends.get(name, "</s>")] in built_in.stop_ids, name
    for dialog in written["harmony"][:2]:
        assert written["harmony"][2][0].specials["<|end|>"] not in dialog.stop_ids, (
            "thoughts end there, the answer goes on"
        )


def test_harmony_tells_the_date(written: dict[str, tuple[DialogFormat, DialogFormat, Both]]) -> None:
    built_in, _, (tokenizer, _) = written["harmony"]
    assert f"Current date: {date.today()}\n" in tokenizer.decode(built_in.encode([user("a")]))


def test_what_has_no_tools_refuses_them(written: dict[str, tuple[DialogFormat, DialogFormat, Both]]) -> None:
    for name, (built_in, *_) in written.items():
        if name not in ("granite", "glm4"):
            with pytest.raises(UsageError):
                built_in.encode([user("a"), answer("b"), Message("tool", "c")])


def with_marks(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any], *names: str) -> Tokenizer:
    library = smollm2_library(metadata)
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>", *names)])
    return with_reference(tmp_path_factory.mktemp("marks"), library)[0]


def test_without_a_template_control_tokens_tell_the_form(
    tmp_path_factory: pytest.TempPathFactory, smollm2_metadata: dict[str, Any]
) -> None:
    names = FORMS["granite"].needs
    tokenizer = with_marks(tmp_path_factory, smollm2_metadata, *names)
    tokenizer.specials.pop("<|im_start|>", None)
    built_in = choose(None, tokenizer, None)
    assert built_in.encode([user("a")]) == BUILTIN["granite"](tokenizer).encode([user("a")])
    assert set(MARKS.values()) <= BUILTIN.keys()


def test_harmony_is_told_how_much_to_think(written: dict[str, tuple[DialogFormat, DialogFormat, Both]]) -> None:
    built_in, _, (tokenizer, _) = written["harmony"]
    for thinking, effort in ((None, "medium"), (True, "high"), (False, "low")):
        assert f"Reasoning: {effort}\n" in tokenizer.decode(built_in.having(thinking).encode([user("a")]))
    kept = [user("a"), answer("<think>hm</think>\n\nb"), user("c")]
    assert built_in.encode(kept) == built_in.encode([user("a"), answer("b"), user("c")]), "thoughts are not sent again"


def test_a_form_whose_tokens_are_not_there_is_one_line(spm: Tokenizer) -> None:
    for name in FORMS:
        if name not in PLAIN:
            with pytest.raises(ConfigError, match="the dialog format is another"):
                BUILTIN[name](spm)
