"""The Python API with a model that thinks: the answer alone, and the thought beside it."""

import pytest
from thinkers import CLOSE, END, OPEN, thinking_model

from llamachat import Llama
from llamachat.api import Dialog
from llamachat.errors import UsageError

DIALOG: Dialog = [{"role": "user", "content": "q"}]
SAYS = (OPEN, *b"hm, well, so ", CLOSE, *b"\n\nYes")


def test_an_answer_comes_without_its_thought_which_is_beside_it() -> None:
    (found,) = Llama(thinking_model(*SAYS)).chat_completion([DIALOG], temperature=0, logprobs=True)
    assert found["generation"] == {"role": "assistant", "content": "Ye"} and found["reasoning"] == "hm, well, so"
    assert len(found["tokens"]) == len(found["logprobs"]) == len(SAYS) - 1, "of all that was generated"
    (plain,) = Llama(thinking_model(*b"Yes.", END)).chat_completion([DIALOG], temperature=0)
    assert plain == {"generation": {"role": "assistant", "content": "Yes."}}


def test_a_budget_ends_the_thought_also_of_a_batch() -> None:
    llama = Llama(thinking_model(*SAYS))
    (one,) = llama.chat_completion([DIALOG], temperature=0, think_budget=4)
    assert one["reasoning"] == "hm," and one["generation"]["content"]
    assert llama.chat_completion([DIALOG, DIALOG], temperature=0, think_budget=4) == [one, one]
    with pytest.raises(UsageError, match="think_budget"):
        llama.chat_completion([DIALOG], think_budget=-1)


def test_a_stream_is_the_answer_alone_and_its_result_the_whole() -> None:
    llama = Llama(thinking_model(*SAYS))
    (whole,) = llama.chat_completion([DIALOG], temperature=0)
    stream = llama.chat_stream(DIALOG, temperature=0)
    assert "".join(stream) == "Ye" and stream.result == whole


def test_think_is_the_templates_own_switch() -> None:
    model = thinking_model(*SAYS)
    read: list[str] = []
    row = model.engine.row
    model.engine.row = lambda tokens: read.append("".join(map(model.token_text, tokens))) or row(tokens)
    list(Llama(model).chat_stream(DIALOG, 0, max_gen_len=1, think=False))
    assert "<|im_start|>assistant\n<think>\n\n</think>\n\n" in read[-1]
    list(Llama(model).chat_stream(DIALOG, 0, max_gen_len=1, think=True))
    assert "</think>" not in read[-1]
