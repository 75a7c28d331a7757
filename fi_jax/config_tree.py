"""A tree of config dataclasses as plain dicts (JSON), as flat dotted fields, and back."""

import dataclasses
import typing

from fi_jax.errors import UserError, require_choice

# Fields of old configs that are gone, and what to do.
RETIRED: dict[str, str] = {}
# Fields that configs written before lack, and what they were then.
_BEFORE: dict[str, dict[str, object]] = {"model.knowledge": {"head": "bernoulli"}}


def to_dict(config) -> dict:
    """Returns a config tree as plain dicts, lists and scalars (JSON)."""
    return dataclasses.asdict(config)


def flat_fields(config, prefix: str = "") -> list[tuple[str, object]]:
    """Lists `(dotted name, value)` of every leaf field of a config tree."""
    fields: list[tuple[str, object]] = []
    for field_ in dataclasses.fields(config):
        name, value = prefix + field_.name, getattr(config, field_.name)
        if dataclasses.is_dataclass(value):
            fields += flat_fields(value, name + ".")
            continue
        fields.append((name, value))
        if isinstance(value, tuple):
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    fields += flat_fields(item, f"{name}.{i}.")
    return fields


def from_dict(cls, values: dict, path: str = ""):
    """Builds config class `cls` from plain dicts without retired fields; unknown keys are a `UserError` that names them."""
    if not isinstance(values, dict):
        raise UserError(f"config field '{path or 'the top'}' is {values!r}; it must be a group of fields")
    hints = typing.get_type_hints(cls)
    values = {key: value for key, value in values.items() if f"{path}.{key}" not in RETIRED}
    values = _BEFORE.get(path, {}) | values
    for key in values:
        require_choice(f"config field under '{path or 'the top'}'", key, hints)
    return cls(**{key: _from_plain(hints[key], value, f"{path}.{key}".lstrip(".")) for key, value in values.items()})


def _from_plain(hint, value, path: str):
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, path)
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        any_length = len(inner) == 2 and inner[1] is Ellipsis
        if not isinstance(value, list | tuple) or not (any_length or len(value) == len(inner)):
            raise UserError(f"config field '{path}' is {value!r}; it must be a list")
        return tuple(_from_plain(h, v, path) for h, v in zip(inner[:1] * len(value) if any_length else inner, value))
    kinds = {float: (int, float)}.get(hint, hint)
    if hint in (bool, int, float, str) and (not isinstance(value, kinds) or isinstance(value, bool) != (hint is bool)):
        raise UserError(f"config field '{path}' is {value!r}; it must be of type {hint.__name__}")
    return value
