"""From a point to a config: fields are checked by name and type, and each point gets a name that stays."""

import dataclasses
import json
import pprint
import typing
from typing import Any, Literal

from flax.traverse_util import flatten_dict, unflatten_dict

from fi_jax.config import Experiment
from fi_jax.config_tree import flat_fields, from_dict, to_dict
from fi_jax.errors import UserError, did_you_mean
from fi_jax.files import sha256

# Values by dotted config field, laid over a config.
Point = dict[str, Any]


def apply(config: Experiment, point: Point) -> Experiment:
    """Returns `config` with the point's fields set. Raises `UserError` for an unknown field or a value of another type."""
    values = flatten_dict(to_dict(config), sep=".")
    for name, value in point.items():
        hint = field_type(name)
        _check_type(name, value, hint)
        values[name] = float(value) if hint is float else value
    return from_dict(Experiment, unflatten_dict(values, sep="."))


def field_type(name: str) -> Any:
    """The declared type of a dotted config field. Raises `UserError` with a guess when there is none."""
    kind: Any = Experiment
    for part in name.split("."):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if part not in hints:
            known = [known for known, _ in flat_fields(Experiment())]
            last = name.rsplit(".", 1)[-1]
            same = [full for full in known if full.rsplit(".", 1)[-1] == last]
            guess = f"; did you mean '{same[0]}'?" if same else did_you_mean(name, known)
            raise UserError(f"sweep: the config has no field '{name}'{guess}")
        kind = hints[part]
    if dataclasses.is_dataclass(kind):
        raise UserError(
            f"sweep: '{name}' is a group of fields; name one of {[f.name for f in dataclasses.fields(kind)]}"
        )
    return kind


def _check_type(name: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UserError(f"sweep: {name} is {value!r}; it must be one of {', '.join(map(str, choices))}")
        return
    wanted: Any = typing.get_origin(hint) or hint
    accepted = {float: (float, int), tuple: (tuple, list)}.get(wanted, wanted)
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise UserError(f"sweep: {name} is {value!r}; it must be of type {getattr(wanted, '__name__', wanted)}")


def point_id(config: Experiment, *depends_on: Any) -> str:
    """Ten letters that name what a run computes: equal configs have equal ones, in any sweep and order.

    `depends_on` is what the result depends on besides, as JSON values.
    """
    values = to_dict(config)
    values.pop("name")
    return sha256(json.dumps([values, *depends_on] if depends_on else values, sort_keys=True))[:10]


def config_source(values: dict[str, Any], title: str) -> str:
    """Python source of a config file that `fi-jax train` takes and that depends on no other file."""
    return (
        f'"""{title}"""\n\nfrom fi_jax.config import Experiment\nfrom fi_jax.config_tree import from_dict\n\n'
        f"VALUES = {pprint.pformat(values, sort_dicts=False, width=118)}\n\n\n"
        "def config() -> Experiment:\n    return from_dict(Experiment, VALUES)\n"
    )
