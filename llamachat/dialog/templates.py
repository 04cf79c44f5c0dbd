"""A model's own Jinja chat template, rendered in a process of its own (template_worker.py)."""

import json
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from threading import Timer
from typing import Any

from llamachat.errors import ConfigError, reading

MAX_SOURCE = 1 << 18  # characters
TIMEOUT = 10.0  # seconds, the start of the process included
_CONSEQUENCE, _REMEDY = (
    "the dialog cannot be written",
    "set `dialog` for this model in models.toml, or use complete --raw",
)


class ChatTemplate:
    """Starts its process when made: that imports jinja2 while the model is still loading."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise template_error(f"has more than {MAX_SOURCE} characters")
        self._source = source
        self._start()

    def render(self, variables: Mapping[str, Any]) -> str:
        """Raises ConfigError when the template fails, refuses the dialog, or needs too much time or memory."""
        with reading("the model's chat template", ConfigError, _CONSEQUENCE, _REMEDY):
            return self._rendered(variables)

    def _rendered(self, variables: Mapping[str, Any]) -> str:
        if self._process.poll() is not None:
            self._stop()
            self._start()
        line = self._ask(json.dumps(variables))
        if not line.endswith("\n"):
            self._stop()
            raise template_error(f"needs more than {TIMEOUT:g} s or too much memory")
        answer = json.loads(line)
        if "error" in answer:
            raise template_error(f"fails: {answer['error']!r}")
        text: str = answer["text"]
        return text

    def _start(self) -> None:
        worker = str(Path(__file__).with_name("template_worker.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-P", worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
        )
        self._stop = weakref.finalize(self, _end, self._process)
        self._ask(json.dumps(self._source), answered=False)

    def _ask(self, line: str, answered: bool = True) -> str:
        """The line it answers with; cut short or empty when it died or had to be ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        watchdog = Timer(TIMEOUT, self._process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            return self._process.stdout.readline() if answered else ""
        except BrokenPipeError:
            return ""
        finally:
            watchdog.cancel()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def template_error(what: str) -> ConfigError:
    """The error for a chat template that cannot be used."""
    return ConfigError(f"the model's chat template {what}", _CONSEQUENCE, _REMEDY)
