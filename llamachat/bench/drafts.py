"""What guesses gain where an answer repeats what was said, and cost where it does not: the same answers with and without."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from llamachat.core.cache import Cache
from llamachat.core.dialog import Message
from llamachat.core.generate import generate, prefill
from llamachat.core.sampler import Sampler
from llamachat.core.sampling import SamplingParams
from llamachat.generation.guesses import Guesses
from llamachat.models.load import LoadedModel

TEXT = """The library opens at nine in the morning on weekdays and at ten on Saturdays. Visitors may borrow up to twelve \
books at a time and keep each of them for four weeks. A book that nobody has reserved can be renewed twice, at the desk or \
by telephone. Newspapers, maps and rare prints stay in the reading room on the second floor, where laptops are welcome but \
phone calls are not. Children under ten must be accompanied by an adult at all times. Lost cards are replaced for a fee of \
three euros, and damaged books have to be paid for at their current price."""
LETTER = """Dear Mr. Brown,

thank you for your order of 14 March. The three chairs will be sent on Monday and should reach you by Thursday. The table is \
out of stock until April; we will send it as soon as it comes in. If you would rather have your money back, please call us \
before Friday.

Kind regards,
Anna Field"""
EDITS = (
    (f'Repeat the following text word for word, but write "museum" instead of "library":\n\n{TEXT}',),
    (f"Rewrite this letter, changing Mr. Brown to Mrs. Green and Monday to Tuesday:\n\n{LETTER}",),
)
SECOND_TURNS = (
    (
        "Write a short story about a lighthouse keeper called Tom.",
        "Write the same story again, but call the keeper Jack.",
    ),
    ("Write an email that invites Mr. Brown to a meeting on Monday.", "Write it again, but for Mrs. Green."),
)
CHATS = (
    ("Tell me about the history of tea.",),
    ("How do I learn to swim as an adult?",),
    ("Write a short story about a lighthouse.",),
)
GREEDY = SamplingParams(temperature=0)
LIMIT = 160  # tokens of an answer

Dialog = Sequence[str]  # questions


@dataclass(frozen=True)
class Gain:
    """How many times faster with drafts, and the speeds in tokens a second: medians."""

    ratio: float
    with_tok_s: float
    without_tok_s: float


def edit(model: LoadedModel, repeats: int) -> Gain:
    """Of repeating texts with some words replaced, greedily."""
    return gain(model, EDITS, GREEDY, LIMIT, repeats)


def second_turn(model: LoadedModel, repeats: int) -> Gain:
    """Of second answers that are to be the first ones with a word replaced, greedily."""
    return gain(model, SECOND_TURNS, GREEDY, LIMIT, repeats)


def chat(model: LoadedModel, repeats: int) -> Gain:
    """Of free chat with the model's own sampling."""
    return gain(model, CHATS, model.sampling.replace(seed=1), LIMIT, repeats)


def gain(model: LoadedModel, dialogs: Sequence[Dialog], params: SamplingParams, limit: int, repeats: int) -> Gain:
    """Each repeat holds every dialog with and without drafts, one after the other; both give the same tokens."""
    ratios, speeds = [], []
    for repeat in range(repeats + 1):
        seconds, tokens = [0.0, 0.0], 0
        for number, dialog in enumerate(dialogs):
            order = (True, False) if (repeat + number) % 2 else (False, True)
            taken = {drafting: _last_answer(model, dialog, params, limit, drafting) for drafting in order}
            assert taken[True][0] == taken[False][0], "drafts change nothing"
            seconds = [seconds[0] + taken[True][1], seconds[1] + taken[False][1]]
            tokens += len(taken[True][0])
        if repeat:
            ratios.append(seconds[1] / seconds[0])
            speeds.append([tokens / each for each in seconds])
    return Gain(statistics.median(ratios), *(statistics.median(column) for column in zip(*speeds, strict=True)))


def _last_answer(
    model: LoadedModel, dialog: Dialog, params: SamplingParams, limit: int, drafting: bool
) -> tuple[list[int], float]:
    """The tokens of the answer to the last question, and the seconds of decoding them."""
    messages = [Message("system", model.system)] if model.system else []
    cache, guesses = Cache(model.engine.slots), Guesses() if drafting else None
    for question in dialog:
        messages.append(Message("user", question))
        ids = model.dialog.encode(messages)
        made, seconds = _answer(model, cache, ids, Sampler(params, model.engine.config.vocab_size), limit, guesses)
        said = tuple(token for token in made if token not in model.stop_ids)
        messages.append(Message("assistant", "".join(map(model.token_text, said)), said))
    return made, seconds


def _answer(
    model: LoadedModel, cache: Cache, ids: list[int], sampler: Sampler, limit: int, guesses: Guesses | None
) -> tuple[list[int], float]:
    logits = prefill(model.engine, cache, ids[cache.keep_common_prefix(ids) :])
    sampler.observe_prompt(ids)
    begin = time.perf_counter()
    drafter = guesses.begin(ids) if guesses else None
    tokens = generate(model.engine, cache, logits, sampler, stop_ids=model.stop_ids, max_tokens=limit, drafter=drafter)
    made = [token.id for token in tokens]
    return made, time.perf_counter() - begin
