"""What ends an answer is one set of ids, wherever the answer is asked for."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import save_hf, tiny_model
from dialogs import local, local_session
from tokenizers import Tokenizer as Library
from vocabularies import byte_level_json, write_folder

from llamachat import Llama
from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.cli.loading import answer_settings
from llamachat.cli.options import Options
from llamachat.core.dialog import Message
from llamachat.core.sampling import SamplingParams
from llamachat.events import TurnDone
from llamachat.generation.completer import Completer
from llamachat.generation.constraints import from_regex, from_schema
from llamachat.models.load import LoadedModel, load

SPECIALS = ("<|begin|>", "<|end|>", "<|header|>", "<|eot|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|header|>' + m.role + '\n' + m.content + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant\n' }}{% endif %}"
)
GREEDY = Settings(SamplingParams(temperature=0), max_tokens=9)
MESSAGES = [{"role": "user", "content": "hi"}]


def saying(folder: Path, *tokens: int, library: Library) -> Path:
    """A model that says the first of these tokens, and behind each of them the next; all of its metadata name <|end|>."""
    size = library.get_vocab_size()
    model = tiny_model(vocab_size=size, hidden_size=size + size % 2, num_attention_heads=1, num_key_value_heads=1)
    state = {name: tensor * 0 for name, tensor in model.state_dict().items()}
    state["model.norm.weight"] += 1
    for token in range(size):
        state["model.embed_tokens.weight"][token, token] = 1
        following = tokens[tokens.index(token) + 1] if token in tokens[:-1] else tokens[0]
        state["lm_head.weight"][following, token] = 9
    model.load_state_dict(state)
    save_hf(model, folder)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": library.token_to_id("<|end|>")}))
    write_folder(folder, library, bos_token="<|begin|>", eos_token="<|end|>", chat_template=TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def library() -> Library:
    return byte_level_json(*SPECIALS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, library: Library) -> Path:
    """It says "7" and ends its turn, which the template alone names."""
    seven, eot = library.token_to_id("7"), library.token_to_id("<|eot|>")
    return saying(tmp_path_factory.mktemp("ends"), seven, eot, library=library)


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(str(folder), ctx_size=200, parallel=4, force=True)


def completer(model: LoadedModel, raw: bool = False, grammar: str | None = None) -> Completer:
    settings = answer_settings(Options(temperature=0, max_tokens=9), model, raw=raw)
    return Completer(model, settings, None, raw, False, grammar=grammar)


class Given:
    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)

    def take(self, wait: bool) -> str:
        return next(self._lines, "")


def test_a_model_knows_what_ends_a_text_and_what_ends_an_answer(model: LoadedModel, library: Library) -> None:
    end, eot = map(library.token_to_id, ("<|end|>", "<|eot|>"))
    assert (model.text_stop_ids, model.stop_ids) == ({end}, {end, eot})


def test_an_answer_ends_with_its_turn_in_complete(model: LoadedModel) -> None:
    run = completer(model)
    result = run.result(run.dialog("hi"))
    assert (result["text"], result["finish_reason"], len(result["tokens"])) == ("7", "stop", 1)


def test_an_answer_ends_with_its_turn_in_a_batch(model: LoadedModel) -> None:
    out = io.StringIO()
    lines = [json.dumps({"prompt": "hi"}), json.dumps({"messages": MESSAGES}), json.dumps({"prompt": "a b"})]
    assert completer(model).batch(Given(*(line + "\n" for line in lines)), out, 4)
    results = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(r["text"], r["finish_reason"]) for r in results] == [("7", "stop")] * 3


@pytest.mark.parametrize("grammar", [from_regex("[0-9]+"), from_schema({"type": "integer"})], ids=["regex", "schema"])
def test_a_grammar_ends_where_its_turn_ends(model: LoadedModel, grammar: str) -> None:
    """Both could go on with digits for ever."""
    run = completer(model, grammar=grammar)
    result = run.result(run.dialog("hi"))
    assert (result["text"], result["finish_reason"]) == ("7", "stop")


def test_an_answer_ends_with_its_turn_in_a_chat(model: LoadedModel) -> None:
    chat = local_session(model, GREEDY, None, "roll")
    done = [event for event in chat.ask("hi") if isinstance(event, TurnDone)]
    assert done[0].reason == "stop" and chat.turns()[-1].text == "7"


def test_an_answer_ends_with_its_turn_in_the_python_api(folder: Path) -> None:
    llama = Llama.build(str(folder), max_seq_len=64, max_batch_size=2, force=True)
    options: dict[str, Any] = {"temperature": 0, "max_gen_len": 5}
    for answer in llama.chat_completion([MESSAGES, MESSAGES], **options):
        assert answer["generation"]["content"] == "7"
    text = llama.text_completion(["hi"], **options)[0]["generation"]
    assert text.count("7") == 3, "no turn ends in a text without turns"


def test_a_raw_text_ends_at_eos_only(model: LoadedModel, library: Library) -> None:
    result = completer(model, raw=True).result("hi")
    assert result["finish_reason"] == "length" and library.token_to_id("<|eot|>") in result["tokens"]


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% if %}"])
def test_a_model_whose_template_fails_still_goes_on_with_texts(tmp_path: Path, library: Library, template: str) -> None:
    seven = library.token_to_id("7")
    saying(tmp_path, seven, library=library)
    write_folder(tmp_path, library, bos_token="<|begin|>", eos_token="<|end|>", chat_template=template)
    model = load(str(tmp_path), ctx_size=64, force=True)
    assert model.stop_ids == model.text_stop_ids == {library.token_to_id("<|end|>")}
    assert completer(model, raw=True).result("hi")["text"] == "7" * 9


def test_a_prompt_tells_what_was_ignored_of_a_tokenizers_files(tmp_path: Path, library: Library) -> None:
    saying(tmp_path, 5, library=library)
    (tmp_path / "added_tokens.json").write_text('{"<|far|>": 99999999}')
    assert "<|far|>" in load(str(tmp_path), ctx_size=64, force=True).notes[0]


def test_dialogs_and_their_turns_are_the_same_ids(model: LoadedModel) -> None:
    messages = [Message("user", "a\n"), Message("assistant", " b "), Message("user", "")]
    turns = model.dialog.turns(messages)
    assert [i for turn in turns for i in turn] == model.dialog.encode(messages) and len(turns) == 4
    assert np.isin(model.dialog.encode(messages), [*model.stop_ids]).sum() == 3


# ---- templates in a chat ----

MOVES = (
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
    "{% if loop.last and said is defined %}{{ '[INST] ' + said + '\n\n' + m.content + '[/INST]' }}{% else %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}{% else %}{{ ' ' + m.content + '<|eot|>' }}{% endif %}{% endfor %}"
)
THINKS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|header|>' + m.content }}{% else %}"
    "{{ '<|header|>' + m.content.split('</think>')[-1] + '<|eot|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>\n' }}{% endif %}"
)


def shown(chat: Session) -> str:
    """What the model has read, with control tokens by name."""
    return "".join(map(local(chat).model.token_text, local(chat).cache.log))


@pytest.mark.parametrize("overflow", ["roll", "refill"])
def test_a_template_that_moves_the_system_prompt_chats_on(tmp_path: Path, overflow: Any) -> None:
    library = byte_level_json(*SPECIALS, "[INST]", "[/INST]")
    saying(tmp_path, *map(library.token_to_id, ("7", "<|eot|>")), library=library)
    write_folder(tmp_path, library, bos_token="<|begin|>", eos_token="<|end|>", chat_template=MOVES)
    model = load(str(tmp_path), ctx_size=120, force=True)
    chat = local_session(model, GREEDY, "be brief", overflow)
    for number in range(12):
        list(chat.ask(f"question {number}"))
        assert chat.turns()[-1].text == "7"
        assert shown(chat).endswith(f"[INST] be brief\n\nquestion {number}[/INST]7"), "as the template has it"
        assert shown(chat).startswith("<|begin|>")
    assert any(turn.seen == "dropped" for turn in chat.turns())


def test_a_template_that_leaves_out_thoughts_leaves_them_out_of_a_chat(tmp_path: Path) -> None:
    library = byte_level_json(*SPECIALS, "</think>")
    saying(tmp_path, *map(library.token_to_id, ("7", "</think>", "8", "<|eot|>")), library=library)
    write_folder(tmp_path, library, bos_token="<|begin|>", eos_token="<|end|>", chat_template=THINKS)
    model = load(str(tmp_path), ctx_size=120, force=True)
    chat = local_session(model, GREEDY, None, "roll")
    for question in "abc":
        list(chat.ask(question))
        assert chat.turns()[-1].text == "7</think>8"
    one = "<|header|>{}<|header|>8<|eot|>"
    assert shown(chat) == f"<|begin|>{one}{one}<|header|>c<|header|>\n7</think>8".format("a", "b")
