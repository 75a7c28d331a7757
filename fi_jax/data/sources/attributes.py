"""Attribute tables valued 1, -1 or 0 (unknown), kept compactly and read as mappings of labels."""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int8


class AttributeRow(Mapping[str, bool]):
    """One face's `labels`: a view of one int8 row of a table, in which 1 is true, -1 false and 0 left out.

    A dictionary of forty names would take a hundred times the memory over millions of faces.
    """

    __slots__ = ("_names", "_values")

    def __init__(self, names: tuple[str, ...], values: Int8[np.ndarray, "n"]):
        self._names, self._values = names, values

    def __getitem__(self, name: str) -> bool:
        value = self._values[self._names.index(name)] if name in self._names else 0
        if value == 0:
            raise KeyError(name)
        return bool(value > 0)

    def __iter__(self) -> Iterator[str]:
        return (name for name, value in zip(self._names, self._values.tolist(), strict=True) if value)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._values))

    def items(self):
        """Pairs of name and truth; one pass, where the inherited form looks every name up."""
        return [(n, v > 0) for n, v in zip(self._names, self._values.tolist(), strict=True) if v]

    def __repr__(self) -> str:
        return f"AttributeRow({dict(self.items())})"


def with_female(names: tuple[str, ...], values: Int8[np.ndarray, "m n"]) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the table with a column "Female", the opposite of "Male"."""
    female = -values[:, names.index("Male")]
    return (*names, "Female"), np.concatenate([values, female[:, None]], axis=1)
