"""What may be asked about a session while it answers: how all was before."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llamachat.events import SavedDialog, Stats, Turn


@dataclass(frozen=True)
class Finished:
    """A session between two answers; nothing of it changes, in whatever thread it is looked at."""

    name: str | None  # under which it is saved
    about: Mapping[str, str]
    last_stats: Stats | None
    context_used: int
    context_size: int
    all_turns: Sequence[Turn]
    saved: Callable[[], Sequence[SavedDialog]]  # reads what is on disk now

    def describe(self) -> Mapping[str, str]:
        return self.about

    def turns(self) -> Sequence[Turn]:
        return self.all_turns
