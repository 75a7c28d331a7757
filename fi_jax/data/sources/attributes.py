"""Attribute tables valued 1, -1 or 0 (unknown), kept compactly and read as mappings of labels."""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int8


class AttributeRow(Mapping[str, bool]):
    """One face's attributes as `labels` of a `FaceRecord`: a view of one int8 row, 0 left out.

    A dictionary of forty names would take a hundred times the memory over millions of faces. "Male"
    also states "Female", its opposite.
    """

    __slots__ = ("_names", "_values")

    def __init__(self, names: tuple[str, ...], values: Int8[np.ndarray, "n"]):
        self._names, self._values = names, values

    def __getitem__(self, name: str) -> bool:
        if name == "Female":
            return not self["Male"]
        try:
            value = self._values[self._names.index(name)]
        except ValueError:
            raise KeyError(name) from None
        if value == 0:
            raise KeyError(name)
        return bool(value > 0)

    def __iter__(self) -> Iterator[str]:
        for name, value in zip(self._names, self._values.tolist(), strict=True):
            if value:
                yield name
                if name == "Male":
                    yield "Female"

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def items(self):
        """Pairs of name and truth; the fast way that `encode_labels` takes."""
        for name, value in zip(self._names, self._values.tolist(), strict=True):
            if value:
                yield name, value > 0
                if name == "Male":
                    yield "Female", value < 0

    def __repr__(self) -> str:
        return f"AttributeRow({dict(self)})"
