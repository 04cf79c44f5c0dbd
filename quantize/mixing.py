"""How each matrix is quantized so that all of them fit a size, and the model's predictions lose as little as they can.

Every matrix begins as coarse as can be. Then room goes to the step, of a matrix to a finer way, that saves most of its cost
(see sensitivity.py) by the byte, and so on until no step has room. Experts of a layer that do the same are one choice.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from llamachat.errors import ModelError, UsageError
from llamachat.families.t5 import EncoderDecoderSpec
from llamachat.formats import Checkpoint
from llamachat.formats.prequantized.schemes import SCHEMES, Scheme
from llamachat.system.amounts import size
from quantize.convert import Progress
from quantize.recipe import Recipe
from quantize.schemes import OUTER
from quantize.sensitivity import costs
from quantize.sizes import output_bytes, stored_bytes

GROUPS = (128, 64, 32)  # of the recipe's own scheme, from coarse to fine
FINE = "int8"  # the finest way, which is taken to cost nothing: it does a hundredth of the others
MIXED = [name for name, scheme in SCHEMES.items() if scheme.bits == 4 and not scheme.foreign]


@dataclass(frozen=True)
class Way:
    """To code matrices, as an override names it; their bytes, and what it costs, in nats a token."""

    named: str
    bytes: int
    cost: float


class Mixing:
    """What may be chosen for a model: of the matrices that the recipe leaves to its own scheme."""

    def __init__(self, source: Checkpoint, recipe: Recipe) -> None:
        """Raises UsageError and ModelError where there is nothing to choose, or nothing to choose by."""
        if recipe.scheme not in MIXED:
            cause = f"bits are chosen between {FINE} and {' or '.join(MIXED)}, and {recipe.scheme} was named"
            raise UsageError(cause, "nothing was converted", f"--scheme {MIXED[0]}")
        if isinstance(source.config, EncoderDecoderSpec) or source.config.head != "next_token":
            cause = "bits are chosen by what a decoder's next tokens lose, and this model is none"
            raise ModelError(cause, "nothing was converted", "leave the choice out, or make it with --override")
        self.source, self.recipe, self.index = source, recipe, source.index()
        self.weights = sum(prod(info.shape) for info in self.index.values())
        self.names = dict[str, list[str]]()  # of the matrices that each choice is for, by the pattern of an override
        for name in filter(self._open, self.index):
            self.names.setdefault(re.sub(r"(?<=\.experts\.)\d+", "*", name.removesuffix(".weight")), []).append(name)

    def _open(self, name: str) -> bool:
        """Whether nothing was said of a matrix but the scheme of all."""
        said = name in OUTER or self.recipe.overridden(name)
        scheme = self.recipe.scheme_for(name, self.index[name].shape)
        return scheme is not None and not said and self.recipe.name_for(name) == self.recipe.scheme

    def _schemes(self, name: str) -> dict[str, Scheme]:
        """The recipe's own scheme in the groups that a matrix can have, from coarse to fine."""
        groups = (self.recipe.group_size,) if self.recipe.group_size else GROUPS
        each = {named: self.recipe.named(named) for group in groups if (named := f"{self.recipe.scheme}:{group}")}
        columns = self.index[name].shape[1]
        return {named: scheme for named, scheme in each.items() if scheme and scheme.fits(columns)}

    def fitting(self, room: int, windows: Sequence[Sequence[int]], threads: int | None, progress: Progress) -> Recipe:
        """The recipe, with overrides, whose file of weights has `room` bytes at most.

        windows: token ids of a text, of equal length. Raises UsageError when even the coarsest does not fit.
        """
        chosen = {modules: next(iter(self._schemes(names[0]))) for modules, names in self.names.items()}
        least = output_bytes(self.index, self._with(chosen))
        if least > room:
            cause = f"{self._amount(room)} was allowed, and the least that this model takes is {self._amount(least)}"
            raise UsageError(cause, "nothing was converted", "allow more, or see --embedding, --head and --group-size")
        choices = {name: [*self._schemes(name).values()] for names in self.names.values() for name in names}
        told = costs(self.source, choices, windows, threads, progress)
        ways = {modules: [*self._ways(names, told)] for modules, names in self.names.items()}
        return self._with(chosen | spent(ways, room - least))

    def _ways(self, names: Sequence[str], told: Mapping[str, Sequence[float]]) -> Iterator[Way]:
        """To code these matrices alike; one that no token came to costs nothing, however it is coded."""
        info = self.index[names[0]]
        for number, (named, scheme) in enumerate(self._schemes(names[0]).items()):
            cost = sum(told[name][number] for name in names if name in told)
            yield Way(named, len(names) * stored_bytes(info, scheme), cost)
        yield Way(FINE, len(names) * stored_bytes(info, SCHEMES[FINE]), 0)

    def _with(self, chosen: Mapping[str, str]) -> Recipe:
        """The recipe that says so; what was said before holds."""
        own = tuple(f"{modules}={named}" for modules, named in chosen.items())
        return replace(self.recipe, overrides=(*own, *self.recipe.overrides))

    def _amount(self, count: int) -> str:
        return f"{size(count)} ({8 * count / self.weights:.2f} bits a weight)"

    def described(self, recipe: Recipe) -> str:
        """What was chosen, for people."""
        counts = Counter(recipe.name_for(name) for names in self.names.values() for name in names)
        kinds = ", ".join(f"{count} {named}" for named, count in counts.most_common())
        return f"{kinds}: {self._amount(output_bytes(self.index, recipe))}"


def spent(ways: Mapping[str, Sequence[Way]], room: int) -> dict[str, str]:
    """The way of each choice that is not its first any more, once so many bytes have gone where they save most."""
    steps = [(modules, *step) for modules, each in ways.items() for step in improving(each)]
    steps.sort(key=lambda step: (step[1].cost - step[2].cost) / (step[2].bytes - step[1].bytes), reverse=True)
    chosen, closed = dict[str, str](), set[str]()
    for modules, before, after in steps:
        if modules in closed or after.bytes - before.bytes > room:
            closed.add(modules)
            continue
        chosen[modules] = after.named
        room -= after.bytes - before.bytes
    return chosen


def improving(ways: Sequence[Way]) -> Iterator[tuple[Way, Way]]:
    """Steps from the smallest way to ever larger ones, each the best by the byte: corners of the lower convex hull."""
    at = ways[0]
    while larger := [way for way in ways if way.bytes > at.bytes and way.cost < at.cost]:
        after = max(larger, key=lambda way: (at.cost - way.cost) / (way.bytes - at.bytes))
        yield at, after
        at = after
