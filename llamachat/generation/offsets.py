"""Where in a text its tokens lie, in characters.

Tokens stand for bytes. Where all of them are the text's, offsets are exact. A tokenizer may have read something else: NFKC
instead of what is written, one space for several, an unknown token for a character. Then the two are aligned: where they part,
it is looked for the nearest place from which they agree again, and what lies between is one to the other as a whole.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from llamachat.core.tokenizer import Tokenizer

AGREE = 4  # bytes that must be the same, at most, for two places to be one
REACH = 48  # bytes within which such a place is looked for
Range = tuple[int, int]


@dataclass(frozen=True)
class Offsets:
    """Of each token of a text, the range [first, last) of characters that it was read from."""

    tokenizer: Tokenizer
    text: str
    ranges: Sequence[Range]
    pieces: Sequence[bytes]
    whole: bool  # the tokens' bytes are the text's

    def between(self, first: int, last: int) -> Range:
        """Of the tokens first..last, without white space at its ends if there is anything else."""
        start, end = self.ranges[first][0], max(self.ranges[last][1], self.ranges[first][0])
        part = self.text[start:end]
        if part.strip():
            start, end = end - len(part.lstrip()), start + len(part.rstrip())
        return start, end

    def exact(self, first: int, last: int) -> bool:
        """Whether the part of the text that is given for these tokens is read as the same bytes."""
        if self.whole:
            return True
        start, end = self.between(first, last)
        again = b"".join(map(self.tokenizer.token_bytes, self.tokenizer.encode(self.text[start:end])))
        return again.strip() == b"".join(self.pieces[first : last + 1]).strip()


def offsets(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> Offsets:
    """Of the ids that the tokenizer gives for this text; or of as many of the first ones."""
    pieces, plain = [tokenizer.token_bytes(id) for id in ids], text.encode(errors="replace")
    kept, whole = pieces, False
    for own in (False, True) if tokenizer.dummy_prefix else (False,):  # the first space may be the tokenizer's
        kept = _without_first_space(pieces) if own else pieces
        if whole := plain.startswith(b"".join(kept)):
            break
    body, places = _read(text, whole)
    data = b"".join(kept)
    found = [(at, at + 1) for at in range(len(data))] if whole else _aligned(data, body)
    return Offsets(tokenizer, text, _ranges(kept, found, places), kept, whole)


def _without_first_space(pieces: Sequence[bytes]) -> list[bytes]:
    """Of the first piece that has bytes."""
    first = next((at for at, piece in enumerate(pieces) if piece), 0)
    return [piece.removeprefix(b" ") if at == first else piece for at, piece in enumerate(pieces)]


def _read(text: str, whole: bool) -> tuple[bytes, list[Range]]:
    """The bytes of a text, or of its NFKC, and the characters that each is of; and behind them the text's end."""
    body, places, at = list[bytes](), list[Range](), 0
    while at < len(text):
        end = at + 1
        while not whole and end < len(text) and unicodedata.combining(text[end]):
            end += 1
        part = text[at:end] if whole else unicodedata.normalize("NFKC", text[at:end])
        body.append(part.encode(errors="replace"))
        places += [(at, end)] * len(body[-1])
        at = end
    return b"".join(body), [*places, (len(text), len(text))]


def _ranges(pieces: Sequence[bytes], found: Sequence[Range], places: Sequence[Range]) -> list[Range]:
    """Ranges of bytes, one for each byte of all pieces -> of characters, one for each piece. A piece without bytes takes what
    lies between its neighbours."""
    ranges, before = list[Range](), 0
    for piece, end in zip(pieces, accumulate(map(len, pieces)), strict=True):
        if piece:
            (start, _), (first, last) = places[found[end - len(piece)][0]], found[end - 1]
            stop = places[last - 1][1] if last > first else places[first][0]
        else:
            start, stop = before, places[found[end][0] if end < len(found) else -1][0]
        ranges.append((start, max(start, stop)))
        before = max(before, stop)
    return ranges


def _aligned(data: bytes, body: bytes) -> list[Range]:
    """Of each byte of `data`, the bytes of `body` that it stands for."""
    out, at, to = list[Range](), 0, 0
    while at < len(data):
        mine, other = data[at : at + 1], body[to : to + 1]
        if mine == other or (mine.isspace() and other.isspace()):
            out.append((to, to + 1))
            at, to = at + 1, to + 1
        elif other.isspace() and (at == 0 or data[at - 1 : at].isspace()):  # one space stands for several
            to += 1
        else:
            gap, over = _gap(data[at : at + REACH + AGREE], body[to : to + REACH + AGREE]) or (len(data), len(body))
            gap, over = min(gap, len(data) - at), min(over, len(body) - to)
            out += [(to, to + over)] * gap
            at, to = at + gap, to + over
    return out


def _gap(data: bytes, body: bytes) -> Range | None:
    """How far to go in both until they agree again, in all as little as can be; None: not within reach."""
    for together in range(1, 2 * REACH):
        agree = min(AGREE, 1 + together // 2)  # the further away, the surer it has to be
        for gap in range(max(0, together - REACH), min(together, REACH) + 1):
            ahead, there = data[gap : gap + agree], body[together - gap : together - gap + agree]
            if gap <= len(data) and together - gap <= len(body) and ahead == (there[: len(ahead)] if ahead else there):
                return gap, together - gap
    return None
