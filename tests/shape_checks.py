"""The run-time checker of shapes in tests: shapes and types of array elements; all else is mypy's business."""

import types
import typing
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray


def check(function):
    """Returns `function` with its array annotations (`Float[Array, "b t d"]`) checked at every call.

    NumPy arrays pass where JAX's are annotated, and the other way round.
    """
    hints = getattr(function, "__annotations__", None) or {}
    shapes = {name: _shape_of(hint) for name, hint in hints.items()}
    if all(hint is Any for hint in shapes.values()):
        return function
    function.__annotations__ = shapes
    return beartype(function)


def _shape_of(hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return hint.dtype[Any, hint.dim_str]
    parts, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return typing.Union[tuple(part if part is type(None) else _shape_of(part) for part in parts)]  # noqa: UP007
    if origin is tuple and any(_shape_of(part) is not Any for part in parts if part is not ...):
        return tuple[tuple(part if part is ... else _shape_of(part) for part in parts)]
    return Any
