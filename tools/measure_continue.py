"""Time to the first token of a continued dialog, with its snapshot and without.

`python tools/measure_continue.py MODEL [TOKENS] [REPEATS]`: holds a dialog of so many tokens (4096) in a folder of its own
and leaves it; then goes on with it in new processes, with the snapshot there and with the snapshot deleted, in turn.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llamachat.chat.local import LocalBackend
from llamachat.chat.session import Session
from llamachat.chat.settings import Settings
from llamachat.chat.store import Archive
from llamachat.core.sampling import SamplingParams
from llamachat.events import TextDelta
from llamachat.generation import snapshot
from llamachat.models.load import load

NAME, CONTEXT = "measured", 8192
WORDS = "Tell me more of the town, its river, the old bridge, and of the people who cross it every day. "


def chat(model: str, folder: Path) -> Session:
    loaded = load(model, ctx_size=CONTEXT)
    settings = Settings(SamplingParams(temperature=0), max_tokens=4)
    return Session(LocalBackend(loaded, snapshots=True), settings, "Be brief.", archive=Archive(folder))


def hold(model: str, folder: Path, tokens: int) -> None:
    """A dialog of about so many tokens, left."""
    session = chat(model, folder)
    assert isinstance(session.backend, LocalBackend)
    per_turn = len(session.backend.model.tokenizer.encode(WORDS * 8)) * 2 + 20
    session.begin([("user", WORDS * 8), ("assistant", WORDS * 8)] * (tokens // per_turn))
    list(session.ask("And then?"))
    session.save(NAME)
    session.close()


def child(model: str, folder: Path) -> None:
    """Seconds from the start to a chat that can be asked, and from the question to the first piece of the answer."""
    begin = time.perf_counter()
    session = chat(model, folder)
    loaded = time.perf_counter()
    session.load(NAME)
    ready = time.perf_counter()
    events = session.ask("Why?")
    assert isinstance(next(events), TextDelta)
    first = time.perf_counter()
    list(events)
    assert session.last_stats
    facts = {"load": loaded - begin, "restore": ready - loaded, "first": first - ready}
    session.undo()  # and never closed: the snapshot stays that of the dialog as it was left
    print(json.dumps(facts | {"prompt": session.last_stats.prompt_tokens, "reused": session.last_stats.reused_tokens}))


def measure(model: str, tokens: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        os.environ["XDG_CACHE_HOME"] = home
        folder = Path(home) / "sessions"
        hold(model, folder, tokens)
        (kept,) = snapshot.store().entries()
        aside = kept.with_suffix(".aside")
        runs: dict[str, list[dict[str, float]]] = {"snapshot": [], "no snapshot": []}
        for _ in range(repeats):
            for way, found in runs.items():
                (aside if way == "snapshot" and aside.exists() else kept).rename(kept if way == "snapshot" else aside)
                done = subprocess.run(
                    [sys.executable, __file__, "child", model, str(folder)], stdout=subprocess.PIPE, check=True
                )
                found.append(json.loads(done.stdout))
        print(f"{runs['snapshot'][0]['prompt']:.0f} tokens; snapshot of {aside.stat().st_size / 1e6:.0f} MB")
        medians = {
            way: {key: statistics.median(run[key] for run in found) for key in found[0]} for way, found in runs.items()
        }
        for way, each in medians.items():
            print(
                f"{way:12}  load {each['load']:.2f} s, restore {each['restore']:.3f} s, first token {each['first']:.3f} s "
                f"after the question ({each['reused']:.0f} tokens reused)"
            )
        one, other = (medians[way]["restore"] + medians[way]["first"] for way in runs)
        whole, others = (sum(medians[way][key] for key in ("load", "restore", "first")) for way in runs)
        print(
            f"restore and first token: {other / one:.1f} times sooner; with loading the model: {others / whole:.1f} times"
        )


if __name__ == "__main__":
    if sys.argv[1] == "child":
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        measure(sys.argv[1], *(int(word) for word in [*sys.argv[2:], *("4096", "5")[len(sys.argv) - 2 :]]))
