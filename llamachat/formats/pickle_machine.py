"""What a pickle would call, and of what, found out without calling anything.

Each instruction is done with stand-ins: a text and a tuple are themselves, of lists, dictionaries and objects only the number of
items is known, and of everything else nothing. Known are the instructions that torch's restricted unpickler has.
"""

from dataclasses import dataclass, field

from llamachat.system.metadata import names

VALUES = names("NONE NEWFALSE NEWTRUE BININT BININT1 BININT2 BINFLOAT LONG1")
TEXTS = names("BINUNICODE SHORT_BINSTRING")
CONTAINERS = names("EMPTY_LIST EMPTY_DICT EMPTY_SET")
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MANY = names("APPENDS SETITEMS")
ONE = {"APPEND": 1, "SETITEM": 2}  # what is taken off the stack
CALLS = names("REDUCE NEWOBJ")
PUTS, GETS = names("BINPUT LONG_BINPUT"), names("BINGET LONG_BINGET")


class Name(str):
    """Of something that a pickle asks for."""


@dataclass
class Made:
    """Something that has items, or may have."""

    items: int = 0


@dataclass(frozen=True)
class Call:
    """Of `name`, None where that is no name."""

    name: Name | None
    given: tuple[object, ...]


@dataclass
class Machine:
    """`copied`: items and letters of what was given to calls so far, or to objects as their state; either may copy it."""

    copied: int = 0
    _stacks: list[list[object]] = field(default_factory=lambda: [[]])  # one more from each mark on
    _memo: dict[int, object] = field(default_factory=dict)

    def step(self, instruction: str, argument: object) -> Call | None:
        """The call that this instruction is, if it is one. Raises ValueError or IndexError for what no pickler writes."""
        if instruction in CALLS:
            return self._call()
        if instruction == "MARK":
            self._stacks.append([])
        elif instruction in TUPLES:
            self._put(self._taken(TUPLES[instruction]))
        elif instruction == "TUPLE":
            self._put(tuple(self._stacks.pop()))
        elif instruction in MANY:
            self._grow(len(self._stacks.pop()))
        elif instruction in ONE:
            self._grow(len(self._taken(ONE[instruction])))
        elif instruction == "BUILD":
            (state,) = self._taken(1)
            self.copied += _size(state)
        elif instruction not in ("PROTO", "STOP"):
            self._remember_or_push(instruction, argument)
        return None

    def _remember_or_push(self, instruction: str, argument: object) -> None:
        if instruction in PUTS and isinstance(argument, int):
            self._memo[argument] = self._stacks[-1][-1]
        elif instruction in GETS and isinstance(argument, int) and argument in self._memo:
            self._put(self._memo[argument])
        elif instruction == "BINPERSID":
            self._taken(1)
            self._put(None)
        else:
            self._put(_pushed(instruction, argument))

    def _call(self) -> Call:
        called, given = self._taken(2)
        if not isinstance(given, tuple):
            raise ValueError("a call without a tuple of arguments")
        size = sum(map(_size, given))
        self.copied += size
        self._put(Made(size))
        return Call(called if isinstance(called, Name) else None, given)

    def _put(self, value: object) -> None:
        self._stacks[-1].append(value)

    def _taken(self, count: int) -> tuple[object, ...]:
        """The last so many of the stack, which are there no more."""
        stack = self._stacks[-1]
        if len(stack) < count:
            raise ValueError("an instruction that takes more than there is")
        found = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        return found

    def _grow(self, count: int) -> None:
        grown = self._stacks[-1][-1]
        if not isinstance(grown, Made):
            raise ValueError("items for what has none")
        grown.items += count


def _pushed(instruction: str, argument: object) -> object:
    """What an instruction puts on the stack that takes nothing from it."""
    if instruction == "GLOBAL":
        return Name(argument)
    if instruction in TEXTS:
        return str(argument)
    if instruction in CONTAINERS:
        return Made()
    if instruction not in VALUES:
        raise ValueError(f"the instruction {instruction}")
    return None


def _size(value: object) -> int:
    if isinstance(value, Made):
        return value.items
    return len(value) if isinstance(value, str | tuple) else 1
