"""Colours of code, line by line, by pygments' lexers."""

from functools import cache, lru_cache

from pygments.lexer import Lexer
from pygments.lexers import find_lexer_class, get_all_lexers
from pygments.token import Comment, Generic, Keyword, Literal, Name, Number, Operator, String, _TokenType

LONGEST = 500  # characters of a line that are still coloured
_CONTEXT = 500  # characters of earlier lines that are lexed anew with each further one

# Only lexers that take bounded time over any such line (tests try): a few of pygments' others can be made to hang.
LANGUAGES = frozenset(
    """
    asm awk bash bat batch c c# c++ clojure cmake console cpp cs csharp css dart diff docker dockerfile elixir erlang fish
    fortran go golang graphql groovy haskell hs html http ini java javascript jinja js json jsx julia kotlin latex lua make
    makefile matlab nasm nginx nim objc objective-c ocaml patch perl php pl posh powershell proto protobuf ps1 py pycon
    python python3 r rb rs ruby rust scala scheme scss sh shell sql svg swift tex toml ts tsx typescript vim xml yaml yml
    zig zsh
    """.split()  # noqa: SIM905
)
_COMMENTS = (("/*", "*/"), ("<!--", "-->"))
_SINGLE = {Comment.Single, Comment.Preproc, Comment.PreprocFile, Comment.Hashbang}
_ALIASES = {"jsx": "javascript", "tsx": "typescript", "svg": "xml", "yml": "yaml", "patch": "diff", "proto": "protobuf"}
_ROLES: dict[_TokenType, str] = {
    Comment: "comment",
    Comment.Preproc: "keyword",
    Keyword: "keyword",
    Keyword.Constant: "number",
    Keyword.Type: "type",
    Operator.Word: "keyword",
    Literal: "number",
    Number: "number",
    String: "string",
    Name.Attribute: "type",
    Name.Builtin: "type",
    Name.Class: "name",
    Name.Decorator: "name",
    Name.Function: "name",
    Name.Tag: "name",
    Name.Variable: "type",
    Generic.Heading: "heading",
    Generic.Inserted: "inserted",
    Generic.Deleted: "deleted",
    Generic.Strong: "strong",
    Generic.Emph: "emphasis",
}

Run = tuple[str, str]  # text and its role in the theme


def coloured(language: str, before: str, line: str) -> list[Run]:
    """The line in pieces with their roles; `before` as `carried` gave it."""
    if not line or len(line) > LONGEST or _lexer(language) is None:
        return [(line, "")]
    runs, skip, room = [], len(before), len(line)
    for kind, part in _lex(language, before + line + "\n"):
        skip, part = max(0, skip - len(part)), part[skip:][:room]
        room -= len(part)
        if part:
            runs.append((part, _role(kind)))
    return runs if "".join(part for part, _ in runs) == line else [(line, "")]  # nothing is lost, whatever a lexer does


def carried(language: str, before: str, line: str) -> str:
    """What of the code up to and with this line the colours of the next one depend on: an open string or comment."""
    if _lexer(language) is None or not (line.strip() or before):
        return before
    text = before + line + "\n"
    if len(text) > _CONTEXT or not _open(language, text):
        return ""
    return before if before and len(coloured(language, before, line)) == 1 else text


def _open(language: str, text: str) -> bool:
    """Whether whole lines end inside a string or a comment that spans lines."""
    tokens = _lex(language, text)
    return bool(tokens) and _spans(tokens[-1][0])


def _spans(kind: _TokenType) -> bool:
    return _role(kind) == "string" or (kind in Comment and kind not in _SINGLE)


@lru_cache(16)
def _lex(language: str, text: str) -> list[tuple[_TokenType, str]]:
    """Tokens of whole lines. Lexers that see a comment only when it is closed get to see it closed."""
    for opening, closing in _COMMENTS:
        if text.rfind(opening) > text.rfind(closing):
            tokens = _tokens(language, text + closing)
            kind, part = tokens.pop() if tokens else (Comment, "")
            if kind in Comment and part.endswith(closing):
                return [*tokens, (kind, part[: -len(closing)])]
    return _tokens(language, text)


def _tokens(language: str, text: str) -> list[tuple[_TokenType, str]]:
    lexer = _lexer(language)
    assert lexer is not None
    return [(kind, part) for _, kind, part in lexer.get_tokens_unprocessed(text)]


@cache
def _role(kind: _TokenType) -> str:
    """The theme's role of the nearest kind that has one."""
    return next((_ROLES[ancestor] for ancestor in reversed(kind.split()) if ancestor in _ROLES), "")


@lru_cache(64)
def _lexer(language: str) -> Lexer | None:
    """By one of the names that pygments' own lexers go by (a plugin's code is never looked for)."""
    name = _names().get(_ALIASES.get(language, language)) if language in LANGUAGES else None
    found = find_lexer_class(name) if name else None
    return found(stripnl=False, ensurenl=False, startinline=True) if found else None


@cache
def _names() -> dict[str, str]:
    return {alias: name for name, aliases, _, _ in get_all_lexers(plugins=False) for alias in aliases}
