"""Parts of tensors: what one of several processes has of a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Which rows (or elements of a vector) and which columns of a tensor; None: all. `zero`: not its values but zeros."""

    rows: slice | None = None
    columns: slice | None = None
    zero: bool = False


WHOLE = Part()
