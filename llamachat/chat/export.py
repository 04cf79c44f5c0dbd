"""A dialog as a document: Markdown for people, JSON for programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamachat.chat.titles import title
from llamachat.chat.tree import Node
from llamachat.errors import UsageError
from llamachat.system import private


def export(file: Path, nodes: Sequence[Node], about: dict[str, Any]) -> None:
    """Write these messages to a new file: JSON where its name ends so, else Markdown. `about` holds "system" and more.

    Raises UsageError where the file is there already or cannot be written; it appears whole or not at all.
    """
    text = _json(nodes, about) if file.suffix == ".json" else _markdown(nodes, about)
    try:
        with private.writing(file, new=True) as stream:
            stream.write(text.encode(errors="replace"))
    except FileExistsError as error:
        raise UsageError(f"{file} exists", "nothing was written", "take another name") from error
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        cause = f"{file} cannot be written: {getattr(error, 'strerror', None) or error}"
        raise UsageError(cause, "nothing was exported") from error


def _json(nodes: Sequence[Node], about: dict[str, Any]) -> str:
    messages = [{"role": "system", "content": about["system"]}] if about["system"] else []
    for node in nodes:
        said, thought = _parts(node)
        messages.append({"role": node.role, "content": said} | ({"thinking": thought} if thought else {}))
    about = {key: value for key, value in about.items() if key != "system"}
    return json.dumps({**about, "messages": messages}, ensure_ascii=False, indent=1) + "\n"


def _markdown(nodes: Sequence[Node], about: dict[str, Any]) -> str:
    heading = title(nodes[0].text)[:80] if nodes else about["name"]
    parts = [f"# {heading}", f"*{about['model']}*"]
    parts += [f"## System\n\n{about['system']}"] if about["system"] else []
    for node in nodes:
        said, thought = _parts(node)
        folded = f"<details><summary>Thoughts</summary>\n\n{thought}\n\n</details>\n\n" if thought else ""
        parts.append(f"## {'You' if node.role == 'user' else 'Model'}\n\n{folded}{said}")
    return "\n\n".join(parts) + "\n"


def _parts(node: Node) -> tuple[str, str]:
    """What was said, and what was thought before it."""
    return (node.text, "") if node.role == "user" else (node.said.strip(), node.thought.strip())
