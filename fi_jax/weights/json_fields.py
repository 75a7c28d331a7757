"""JSON that somebody else wrote, read field by field: a wrong type or value is one line that names file and field."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fi_jax import files
from fi_jax.errors import UserError

# No dimension, count or id of a model is larger; what is, would be asked of memory.
_LARGEST = 2**31
_LARGEST_NUMBER = 1e30


def read_object(path: Path, missing: str = "") -> dict[str, Any]:
    """Reads a JSON object; a missing file (`missing` says what that means) or a damaged one is a `UserError`."""
    if missing and not path.is_file():
        raise UserError(missing)
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"'{path}' is not a JSON object")
    return value


class Fields:
    """A JSON object with typed access. A field that is absent or null has its default; every error names the field."""

    def __init__(self, values: Mapping[str, Any], where: str):
        """`where` names the object in errors: its file, and its field there."""
        self.values, self.where = values, where

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a field as it stands."""
        value = self.values.get(name)
        return default if value is None else value

    def group(self, name: str) -> "Fields":
        """Returns an object within this one; empty where it is absent."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, "must be an object")
        return Fields(value, f"{self.where}, {name}")

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Returns a whole number from `least` to 2**31."""
        value = self._required(name, default)
        if not _is_integer(value) or not least <= value <= _LARGEST:
            raise self._wrong(name, f"must be a whole number of at least {least}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a finite number above zero."""
        value = self._required(name, default)
        if not _is_number(value) or not value > 0:
            raise self._wrong(name, "must be a positive number")
        return float(value)

    def share(self, name: str, default: float) -> float:
        """Returns a number in [0, 1]."""
        value = self.get(name, default)
        if not _is_number(value) or not 0 <= value <= 1:
            raise self._wrong(name, "must be a number from 0 to 1")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Returns true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "must be true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Returns a text."""
        value = self._required(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "must be a text")
        return value

    def texts(self, name: str) -> list[str]:
        """Returns a list of texts."""
        value = self.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "must be a list of texts")
        return value

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Returns as many positive whole numbers as `default` has, or any number of them if it has none."""
        value = self.get(name, default)
        count = len(default) or (len(value) if isinstance(value, list | tuple) else 0)
        fits = isinstance(value, list | tuple) and len(value) == count
        if not fits or not all(_is_integer(item) and 1 <= item <= _LARGEST for item in value):
            raise self._wrong(name, f"must be {count or 'several'} positive whole numbers")
        return tuple(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """Returns a list of `count` numbers."""
        value = self._required(name, None)
        if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
            raise self._wrong(name, f"must be {count} numbers")
        return tuple(map(float, value))

    def like(self, name: str, default: Any) -> Any:
        """Returns a field of the type of its default: flag, whole number, number above zero, text or whole numbers."""
        readers: dict[type, Callable[[str, Any], Any]] = {
            bool: self.flag,
            int: self.integer,
            float: self.number,
            str: self.text,
            tuple: self.integers,
        }
        return readers[type(default)](name, default)

    def _required(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is None:
            raise UserError(f"{self.where} has no {name}")
        return value

    def _wrong(self, name: str, expected: str) -> UserError:
        shown = repr(self.values.get(name))
        return UserError(f"{self.where}: {name} is {shown[:60]}{'…' * (len(shown) > 60)}; it {expected}")


def _is_number(value: Any) -> bool:
    # False of NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
