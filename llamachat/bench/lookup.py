"""What prompt lookup gains where an answer repeats its prompt, and costs where it does not: the same answers with and without."""

import statistics
import time
from dataclasses import dataclass

from llamachat.core.cache import Cache
from llamachat.core.dialog import Message
from llamachat.core.generate import generate, prefill
from llamachat.core.sampler import Sampler
from llamachat.core.sampling import SamplingParams
from llamachat.generation.prompt_lookup import PromptLookup
from llamachat.models.load import LoadedModel

TEXT = """The library opens at nine in the morning on weekdays and at ten on Saturdays. Visitors may borrow up to twelve \
books at a time and keep each of them for four weeks. A book that nobody has reserved can be renewed twice, at the desk or \
by telephone. Newspapers, maps and rare prints stay in the reading room on the second floor, where laptops are welcome but \
phone calls are not. Children under ten must be accompanied by an adult at all times. Lost cards are replaced for a fee of \
three euros, and damaged books have to be paid for at their current price."""
EDIT = f'Repeat the following text word for word, but write "museum" instead of "library":\n\n{TEXT}'
CHATS = (
    "Tell me about the history of tea.",
    "How do I learn to swim as an adult?",
    "Write a short story about a lighthouse.",
)


@dataclass(frozen=True)
class Gain:
    """How many times faster with prompt lookup, and the speeds in tokens a second: medians."""

    ratio: float
    with_tok_s: float
    without_tok_s: float


def edit(model: LoadedModel, repeats: int) -> Gain:
    """Of repeating a text with one word replaced, greedily."""
    return gain(model, [EDIT], SamplingParams(temperature=0), 160, repeats)


def chat(model: LoadedModel, repeats: int) -> Gain:
    """Of free chat with the model's own sampling."""
    return gain(model, CHATS, model.sampling.replace(seed=1), 160, repeats)


def gain(
    model: LoadedModel, prompts: list[str] | tuple[str, ...], params: SamplingParams, limit: int, repeats: int
) -> Gain:
    """Each repeat answers every prompt with and without drafts, one after the other; both give the same tokens."""
    ratios, speeds = [], []
    for repeat in range(repeats + 1):
        seconds, tokens = [0.0, 0.0], 0
        for number, prompt in enumerate(prompts):
            order = (True, False) if (repeat + number) % 2 else (False, True)
            taken = {drafting: _answer(model, prompt, params, limit, drafting) for drafting in order}
            assert taken[True][0] == taken[False][0], "drafts change nothing"
            seconds = [seconds[0] + taken[True][1], seconds[1] + taken[False][1]]
            tokens += len(taken[True][0])
        if repeat:
            ratios.append(seconds[1] / seconds[0])
            speeds.append([tokens / each for each in seconds])
    return Gain(statistics.median(ratios), *(statistics.median(column) for column in zip(*speeds, strict=True)))


def _answer(
    model: LoadedModel, prompt: str, params: SamplingParams, limit: int, drafting: bool
) -> tuple[list[int], float]:
    """The tokens, and the seconds of decoding them."""
    system = [Message("system", model.system)] if model.system else []
    ids, cache = model.dialog.encode([*system, Message("user", prompt)]), Cache(model.engine.slots)
    logits = prefill(model.engine, cache, ids)
    sampler = Sampler(params, model.engine.config.vocab_size)
    sampler.observe_prompt(ids)
    begin = time.perf_counter()
    drafter = PromptLookup(ids) if drafting else None
    tokens = generate(model.engine, cache, logits, sampler, stop_ids=model.stop_ids, max_tokens=limit, drafter=drafter)
    made = [token.id for token in tokens]
    return made, time.perf_counter() - begin
