"""The process behind limited.py: sets its limits, loads a handler, and answers each line of JSON with another.

A handler's file has a class `Handler`. It is made with a function that asks the process that started this one; called
with a request, it gives the answer. Whatever it raises becomes {"error": ...}.

Only the standard library is imported, so that a process is there soon.
"""

import faulthandler
import importlib.util
import json
import signal
import sys
from typing import Any


def _limit(memory: int) -> None:
    """Time is limited answer by answer. macOS does not hold a process to its memory, Windows has no such limits."""
    if sys.platform == "win32":
        return
    import resource

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _limit_time(seconds: float) -> None:
    """End the process after so many seconds, whatever holds Python's lock then; 0: never."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)  # exit code 1
    else:
        faulthandler.cancel_dump_traceback_later()


def _write(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _ask(question: Any) -> Any:
    _write({"ask": question})
    return json.loads(sys.stdin.readline())


def _handler(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("handler", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Handler(_ask)


def main(path: str, memory: str, seconds: str) -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the chat
    _limit(int(memory))
    handler = _handler(path)
    for line in sys.stdin:
        _limit_time(float(seconds))
        try:
            answer = handler(json.loads(line))
        except Exception as error:  # noqa: BLE001 - it is the template's or grammar's, and raised again by who asked
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        _limit_time(0)
        _write(answer)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception:  # noqa: BLE001 - nobody reads it; but 1 would say that it took too long
        sys.exit(2)
