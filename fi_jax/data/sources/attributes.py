"""Attribute tables: one byte a label ("1" true, "0" false, "?" unknown), read as mappings of labels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fi_jax.errors import UserError

_KNOWN = {ord("1"): True, ord("0"): False}


class AttributeRow(Mapping[str, bool]):
    """One face's `labels`: names, and one character of "1", "0" or "?" (left out) for each.

    A dictionary of forty names would take a hundred times the memory over millions of faces.
    """

    __slots__ = ("_codes", "_names")

    def __init__(self, names: tuple[str, ...], codes: bytes):
        self._names, self._codes = names, codes

    def __getitem__(self, name: str) -> bool:
        if name not in self._names:
            raise KeyError(name)
        return _KNOWN[self._codes[self._names.index(name)]]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.items())

    def __len__(self) -> int:
        return len(self.items())

    def items(self):
        """Pairs of name and truth; one pass, where the inherited form looks every name up."""
        return [(name, _KNOWN[code]) for name, code in zip(self._names, self._codes, strict=True) if code in _KNOWN]

    def __repr__(self) -> str:
        return f"AttributeRow({dict(self.items())})"


def read_attributes(
    path: Path,
    rows: Iterable[tuple[int, list[str]]],
    names: Sequence[str],
    values: Mapping[str, str],
    first: int = 1,
    hint: str = "",
) -> Iterator[tuple[list[str], AttributeRow]]:
    """Yields `(leading cells, attributes)` of numbered rows: `first` cells, then one cell a name, "Male" among them.

    `values` maps what stands in the file to "1", "0" and "?"; any other value is a `UserError`, with `hint`. A label
    "Female", the opposite of "Male", is added.
    """
    codes = {value: ord(code) for value, code in values.items()}
    opposite = bytes.maketrans(b"10", b"01")
    all_names, male = (*names, "Female"), list(names).index("Male")
    for number, cells in rows:
        try:
            row = bytes(map(codes.__getitem__, cells[first:]))
        except KeyError as error:
            raise UserError(
                f"label file '{path}' line {number} has the unknown value {error}; "
                f"the values are {', '.join(value for value in values if '.' not in value)}{hint}"
            ) from None
        yield cells[:first], AttributeRow(all_names, row + row[male : male + 1].translate(opposite))
