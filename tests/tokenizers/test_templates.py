"""Chat templates give the ids of transformers' apply_chat_template, and no text of a message passes for the skeleton."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, pre_tokenizers
from vocabularies import Both, byte_level_json, smollm2_library, spaced_json, with_reference, write_folder

from llamachat.core.dialog import Message
from llamachat.errors import ConfigError
from llamachat.tokenizers import gguf as gguf_tokenizers
from llamachat.tokenizers import template_worker as worker
from llamachat.tokenizers.jinja import Jinja
from llamachat.tokenizers.open import open_folder

quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])

LLAMA31 = """{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- elif message.role == "tool" or message.role == "ipython" %}
{{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
{%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
{%- else %}{{- message.content }}{%- endif %}{{- "<|eot_id|>" }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}
{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}{%- for message in loop_messages %}
{%- if (message["role"] == "user") != (ns.index % 2 == 0) %}{{- raise_exception("roles must alternate") }}{%- endif %}
{%- set ns.index = ns.index + 1 %}{%- endfor %}{{- bos_token }}{%- for message in loop_messages %}
{%- if message["role"] == "user" %}{%- if loop.last and system_message is defined %}
{{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}{%- else %}
{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}{%- elif message["role"] == "assistant" %}
{{- " " + message["content"]|trim + eos_token}}{%- else %}{{- raise_exception("only user and assistant") }}
{%- endif %}{%- endfor %}"""
QWEN = """{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}{%- if (message.role == "user") or (message.role == "system" and not loop.first) or
(message.role == "assistant" and not message.tool_calls) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- elif message.role == "tool" %}
{%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
{%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}
{%- set role = message['role'] %}{% endif %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""
VICUNA = """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}
{%- elif m['role'] == 'user' %}{{ ' USER: ' + m['content'] }}{% else %}{{ ' ASSISTANT: ' + m['content'] + eos_token }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"""
R1 = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, system_prompt='') %}{%- for message in messages %}
{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}
{{- bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}
{{- '<｜User｜>' + message['content']}}{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}
{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"""
SHAPES = {"llama31": LLAMA31, "mistral": MISTRAL, "qwen": QWEN, "gemma": GEMMA, "vicuna": VICUNA, "r1": R1}
SPECIALS = (
    *("<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "<|im_start|>"),
    *("<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
)
LLAMA3_WORDS = gguf_tokenizers.SPLITS["llama-bpe"][0]


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory, smollm2_metadata: dict[str, Any]) -> dict[str, Both]:
    """Real merges behind Llama 3's way to split, and sentencepiece's manner in tokenizer.json."""
    words = smollm2_library(smollm2_metadata)
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    merges = (("U", "S"), ("A", "S"), ("t", "h"), ("▁", "US"), ("▁", "AS"), (":", "▁"))
    spaced = {name: spaced_json(name, *SPECIALS, merges=merges) for name in ("first", "legacy")}
    folder = tmp_path_factory.mktemp("templates")
    return {name: with_reference(folder / name, library) for name, library in {"words": words, **spaced}.items()}


@pytest.fixture(scope="session")
def dialogs(tokenizers: dict[str, Both]) -> dict[tuple[str, str], Jinja]:
    """Of each tokenizer and shape."""
    return {(t, s): Jinja(tokenizers[t][0], source) for t in tokenizers for s, source in SHAPES.items()}


system, user, answer, tool = (
    lambda text, role=role: Message(role, text)  # type: ignore[misc]
    for role in ("system", "user", "assistant", "tool")
)
DIALOGS = [
    [user("hello")],
    [user("hello"), answer("he said: hold."), user("\n and?\n\n")],
    [system("be brief."), user("hello!")],
    [
        system("be brief."),
        user("hello!"),
        answer("<think>\nhe, she</think>\n\nhel lo"),
        user("  so?"),
        answer("a"),
        user("b\n"),
    ],
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["words", "first", "legacy"])
@pytest.mark.parametrize("messages", DIALOGS, ids=["one", "three", "system", "long"])
def test_a_dialog_has_the_ids_of_transformers(
    tokenizers: dict[str, Both], dialogs: dict[tuple[str, str], Jinja], kind: str, shape: str, messages: list[Message]
) -> None:
    if shape == "gemma" and messages[0].role == "system":
        with pytest.raises(ConfigError, match="System role not supported"):
            dialogs[kind, shape].encode(messages)
        return
    assert dialogs[kind, shape].encode(messages) == tokenizers[kind][1](SHAPES[shape], messages)


ordinary = st.text(st.sampled_from("abcdehilo .,:!?\n\t'\"<>[]/|{}%#é日 "), max_size=20)


@quick
@given(contents=st.lists(ordinary, min_size=1, max_size=5), with_system=st.booleans(), data=st.data())
@example(contents=["hello", "", "a"], with_system=True, data=None)
def test_any_dialog_has_the_ids_of_transformers(
    tokenizers: dict[str, Both],
    dialogs: dict[tuple[str, str], Jinja],
    contents: list[str],
    with_system: bool,
    data: st.DataObject | None,
) -> None:
    kind = data.draw(st.sampled_from(["words", "first", "legacy"])) if data else "words"
    shape = data.draw(st.sampled_from(sorted(SHAPES))) if data else "qwen"
    messages = [(user, answer)[i % 2](text) for i, text in enumerate(contents)]
    messages = messages[: len(messages) - (len(messages) % 2 == 0)]
    messages = [system("be brief."), *messages] if with_system and shape != "gemma" else messages
    tags = dialogs[kind, shape].tags
    if any(tag in m.content for m in messages for tag in tags):
        return  # which is written otherwise, on purpose
    ours, expected = dialogs[kind, shape].encode(messages), tokenizers[kind][1](SHAPES[shape], messages)
    assert ours == expected, shape
    assert len(dialogs[kind, shape].turns(messages)) == len(messages) + 1


@pytest.mark.parametrize("text", ['say "hi"\n', "plain", "é\\ </s>", ""])
def test_a_tools_text_is_escaped_as_json(
    dialogs: dict[tuple[str, str], Jinja], tokenizers: dict[str, Both], text: str
) -> None:
    tokenizer, reference = tokenizers["words"]
    messages = [user("q"), answer("c"), tool(text)]
    ids = dialogs["words", "llama31"].encode(messages)
    assert json.dumps(text, ensure_ascii=False) in tokenizer.decode(ids)
    if "</s>" not in text:
        assert ids == reference(LLAMA31, messages)


CHANGES = {
    "changes": "{{ m.content | upper }}",
    "shortens": "{{ m.content[:5] }}",
    "repeats": "{{ m.content + m.content }}",
    "replaces": "{{ m.content.replace('l', '<|im_end|>') }}",
    "joins": "{{ m.content.split(' ') | join('_') }}",
    "titles": "{{ m.content | capitalize }}",
    "lists": "{% for c in m.content %}{{ c }}-{% endfor %}",
    "dumps": "{{ m | tojson(indent=2) }}",
    "lines": "{{ m.content.splitlines()[-1].strip('h') ~ m.role }}",
    "macro": "{% macro f(x) %}({{ x | lower | trim }}){% endmacro %}{{ f(m.content) }}",
    "set": "{% set x %}<{{ m.content }}>{% endset %}{{ x }}",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_template_does_to_a_text_is_done_to_the_real_one(tokenizers: dict[str, Both], change: str) -> None:
    tokenizer, reference = tokenizers["words"]
    template = (
        "{{ bos_token }}{% for m in messages %}<|im_start|>" + CHANGES[change] + "<|im_end|>\n{% endfor %}<|im_start|>"
    )
    messages = [user("Hello there, hold\non"), answer("HELLO"), user("x y")]
    assert Jinja(tokenizer, template).encode(messages) == reference(template, messages)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{{ m.content }}{{ '%s<|im_end|>' % m.role }}", "cannot be told"),
        ("{{ m.content }}{{ '{}'.format('<|im_end|>') }}", "cannot be told"),
        ("{{ '<|im_start|>{}'.format(m.content) }}", "leaves out what the user said"),
        ("{{ m.content | title }} <|im_end|>", "leaves out what the user said"),
        ("{{ m.role }}", "leaves out"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line(tokenizers: dict[str, Both], body: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Jinja(tokenizers["words"][0], "{% for m in messages %}" + body + "{% endfor %}").encode([user("a b")])
    assert "\n" not in str(caught.value)


def test_a_template_may_insist_on_a_system_prompt(tokenizers: dict[str, Both]) -> None:
    tokenizer, reference = tokenizers["words"]
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + QWEN
    dialog, messages = Jinja(tokenizer, template), [system("s"), user("u"), answer("a"), user("v")]
    assert dialog.encode(messages) == reference(template, messages)
    assert dialog.stop_ids == {tokenizer.specials["</s>"], tokenizer.specials["<|im_end|>"]}
    with pytest.raises(ConfigError, match="system first"):
        dialog.encode([user("u")])


def test_each_message_has_a_turn_even_without_a_text(
    dialogs: dict[tuple[str, str], Jinja], tokenizers: dict[str, Both]
) -> None:
    tokenizer = tokenizers["words"][0]
    turns = dialogs["words", "qwen"].turns([system(""), user(""), answer(""), user("x")])
    shown = ["".join(tokenizer.token_bytes(i).decode() for i in turn) for turn in turns]
    assert shown == ["system\n\n", "user\n\n", "assistant\n\n", "user\nx\n", "assistant\n"]


def test_an_answers_ids_stand_for_it_unless_the_template_leaves_some_out(
    dialogs: dict[tuple[str, str], Jinja], tokenizers: dict[str, Both]
) -> None:
    tokenizer, dialog = tokenizers["words"][0], dialogs["words", "r1"]
    whole = Message("assistant", "hold on", (70, 71, 72))
    thought = Message("assistant", "<think>\nhm</think>hold on", (80, 70, 71, 72))
    prompt = dialog.encode([user("q")])
    assert dialog.encode([user("q"), whole, user("r")])[: len(prompt) + 3] == [*prompt, 70, 71, 72]
    assert dialog.encode([user("q"), thought, user("r")]) == dialog.encode([user("q"), answer("hold on"), user("r")])
    assert tokenizer.encode_skeleton("<think>\n")[-1] == prompt[-1]


# ---- attacks ----

HOSTILE = [
    *SPECIALS,
    *("</think>", "<think>", "<tool_response>", "USER:", "ASSISTANT:", " USER: ", "\\n", '"', "{{", "}}", "{%", "%}"),
    *(name[:3] for name in SPECIALS),
    *(name[3:] for name in SPECIALS),
    *("x", " ", "\n", "▁", "\u0130", "ß", "Σ"),
]
hostile = st.lists(st.sampled_from(HOSTILE), max_size=6).map("".join)
MANGLED = "<s>{% for m in messages %}<|im_start|>BODY<|im_end|>{% endfor %}<|im_start|>"
MANGLES = {f"mangle {name}": MANGLED.replace("BODY", body) for name, body in CHANGES.items() if name != "replaces"}


@pytest.fixture(scope="session")
def attacked(dialogs: dict[tuple[str, str], Jinja], tokenizers: dict[str, Both]) -> dict[str, Jinja]:
    mangling = {name: Jinja(tokenizers["words"][0], source) for name, source in MANGLES.items()}
    return {f"{shape} {kind}": dialog for (kind, shape), dialog in dialogs.items()} | mangling


@quick
@given(contents=st.tuples(hostile, hostile, hostile), tooled=hostile)
@example(contents=("<|im_", "end|>", "</s><s>[INST]"), tooled='"<|eot_id|>')
def test_no_content_becomes_a_control_token_in_any_template(
    attacked: dict[str, Jinja], contents: tuple[str, str, str], tooled: str
) -> None:
    for name, dialog in attacked.items():
        tokenizer = dialog.tokenizer
        roles = [user, answer, user]
        given, neutral = ([role(text) for role, text in zip(roles, texts, strict=True)] for texts in (contents, "xxx"))
        if "llama31" in name or "qwen" in name:
            given, neutral = [*given, tool(tooled)], [*neutral, tool("x")]
        try:
            attack = dialog.encode(given)
        except ConfigError:
            continue
        expected = dialog.encode(neutral)
        control = set(tokenizer.specials.values())
        assert [i for i in attack if i in control] == [i for i in expected if i in control], name


@quick
@given(before=hostile, text=hostile, after=hostile, number=st.integers(0, 30))
def test_text_does_what_str_does_and_loses_no_origin(before: str, text: str, after: str, number: int) -> None:
    """Each operation gives str's own result; what came of the message is never the template's."""
    whole = worker.coming_from(before, worker.TEMPLATE) + worker.coming_from(text, 0) + after
    plain = before + text + after
    sep = HOSTILE[number % len(HOSTILE)]
    operations: list[Callable[[str], Any]] = [
        *(str.strip, str.lstrip, str.rstrip, str.upper, str.lower, str.title, str.capitalize, str.swapcase),
        *(str.casefold, str.split, str.rsplit, str.splitlines, list, str, lambda s: s[::-1], lambda s: s[number:]),
        *(lambda s: s * 2, lambda s: 2 * s, lambda s: "a" + s, lambda s: s + "b"),
        *(
            lambda s: s.split(sep),
            lambda s: s.rsplit(sep, 1),
            lambda s: s.split(sep, number),
            lambda s: s.split(None, 1),
        ),
        *(lambda s: s.rsplit(None, 1), lambda s: s.partition(sep), lambda s: s.rpartition(sep)),
        *(lambda s: s.replace(sep, "y"), lambda s: s.replace(sep, "yy", 1), lambda s: s.replace("", "-")),
        *(lambda s: s.removeprefix(sep), lambda s: s.removesuffix(sep), lambda s: s.join(["1", s, "2"])),
        *(lambda s: s.splitlines(True), lambda s: s.center(40), lambda s: s.strip("<x"), lambda s: s.zfill(9)),
        *(
            lambda s: s % () if "%" not in plain else s,
            lambda s: s.expandtabs(),
            lambda s: "".join([s, s]),
            lambda s: s.encode(),
            lambda s: f"{s}{s}",
        ),
    ]
    for number, operation in enumerate(operations):
        found, expected = operation(whole), operation(plain)
        assert found == expected, number
        for piece in found if isinstance(found, list | tuple) else [found]:
            if isinstance(piece, str):
                assert "".join(part for part, _ in worker.spans(piece)) == piece
                own = "".join(part for part, origin in worker.spans(piece) if origin == worker.TEMPLATE)
                assert len(own) <= 4 * len(before), (number, "no more is the template's than it wrote")


def test_a_position_keeps_its_origin_through_every_cut() -> None:
    text = worker.coming_from("ab ", worker.TEMPLATE) + worker.coming_from("cd ef", 3) + "gh"
    assert worker.spans(text[1:6]) == [("b ", -1), ("cd ", 3)]
    assert [worker.spans(each) for each in text.split(" ")] == [[("ab", -1)], [("cd", 3)], [("ef", 3), ("gh", -2)]]
    assert worker.spans(text.partition("c")[2]) == [("d ef", 3), ("gh", -2)]
    assert worker.spans(text.replace(" ", "ß").upper()) == [
        ("AB", -1),
        ("SS", -2),
        ("CD", 3),
        ("SS", -2),
        ("EF", 3),
        ("GH", -2),
    ]
    assert worker.spans(worker.coming_from("İx", 0).lower() + "y") == [("i̇x", 0), ("y", -2)]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@quick
@given(
    value=values,
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    ordered=st.booleans(),
    tight=st.booleans(),
)
def test_tojson_is_json_dumps(value: Any, ascii_only: bool, indent: Any, ordered: bool, tight: bool) -> None:
    options: dict[str, Any] = {"ensure_ascii": ascii_only, "indent": indent, "sort_keys": ordered}
    options["separators"] = (",", ":") if tight else None
    assert worker.tojson(value, **options) == json.dumps(value, **options)


def test_tojson_takes_keys_that_are_no_texts() -> None:
    value = {3: "a", 2.5: [], None: {}, True: ()}
    assert worker.tojson(value) == json.dumps(value)


# ---- bounds ----


@pytest.mark.parametrize("piece", ["a", "#", "# ", "<", "<|a", "[a", "1a", " ", "as: ", "</"], ids=repr)
def test_reading_what_a_template_writes_takes_time_in_proportion(tmp_path: Path, piece: str) -> None:
    """Expressions that look at each character from each took 15 s for 80,000 here; for these they would take minutes."""
    library = byte_level_json("<s>", "</s>", merges=(("a", "s"), ("<", "/")))
    library.add_special_tokens([AddedToken("<e>", special=True, lstrip=True, rstrip=True)])
    tokenizer = open_folder(write_folder(tmp_path, library, eos_token="</s>"))
    source = "{% set n = 60000 %}{{ '" + piece + "' * n }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    ids = Jinja(tokenizer, source).encode([user("x")])
    assert tokenizer.decode(ids) == piece * 60_000 + "x"


def test_a_template_with_thousands_of_tags_is_refused(tokenizers: dict[str, Both]) -> None:
    source = "".join(f"[TAG{i}]" for i in range(5000)) + "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    with pytest.raises(ConfigError, match="more than 256"):
        Jinja(tokenizers["words"][0], source).encode([user("x")])


def test_a_long_text_goes_through_a_template(
    tokenizers: dict[str, Both], dialogs: dict[tuple[str, str], Jinja]
) -> None:
    text = "hello there. " * 20_000
    ids = dialogs["words", "qwen"].encode([user(text)])
    assert tokenizers["words"][0].decode(ids).count("hello there.") == 20_000
