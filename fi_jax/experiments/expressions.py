"""What a sweep runs through: lists of points (grid, zipped, chain, random and their products) or an Optuna search.

A sweep file has one function, `sweep() -> Sweep`:

    from fi_jax.experiments.expressions import Sweep, grid, log_uniform, random

    def sweep():
        points = grid({"train.learning_rate": [1e-4, 3e-4]}) * grid({"train.seed": range(3)})
        return Sweep(config="tiny", points=points, metric="loss")

A point is a dict from dotted config field to value; it is laid over the config. Ranges are Optuna's distributions.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fi_jax.errors import UserError, require_choice
from fi_jax.experiments.points import Point

Ranges = Mapping[str, BaseDistribution]


@dataclass(frozen=True)
class Points:
    """A finite list of points. `a * b` is every combination, `a + b` one after the other."""

    points: tuple[Point, ...]

    def __mul__(self, other: "Points") -> "Points":
        both = {name for point in self.points for name in point} & {name for point in other.points for name in point}
        if both:
            raise UserError(
                f"sweep: field '{sorted(both)[0]}' stands on both sides of a product; it can have one value"
            )
        return Points(tuple({**a, **b} for a in self.points for b in other.points))

    def __add__(self, other: "Points") -> "Points":
        return Points(self.points + other.points)

    def __len__(self) -> int:
        return len(self.points)


def grid(values: Mapping[str, Iterable[Any]]) -> Points:
    """Every combination of the fields' values; the last field varies fastest."""
    lists = [_values(name, given) for name, given in values.items()]
    return Points(tuple(dict(zip(values, combination)) for combination in itertools.product(*lists)))


def zipped(values: Mapping[str, Iterable[Any]]) -> Points:
    """The first values of all fields, the second ones, and so on; all fields need equally many."""
    lists = {name: _values(name, given) for name, given in values.items()}
    if len({len(given) for given in lists.values()}) > 1:
        raise UserError(
            f"sweep: zipped fields have { ({name: len(v) for name, v in lists.items()}) } values; give equally many"
        )
    return Points(tuple(dict(zip(lists, row)) for row in zip(*lists.values())))


def chain(*parts: Points) -> Points:
    """One list of points after the other."""
    return Points(tuple(point for part in parts for point in part.points))


def uniform(low: float, high: float) -> FloatDistribution:
    """A number between `low` and `high`."""
    return _range(FloatDistribution, low, high, log=False)


def log_uniform(low: float, high: float) -> FloatDistribution:
    """A number between `low` and `high`, as often per decade."""
    return _range(FloatDistribution, low, high, log=True)


def integers(low: int, high: int, log: bool = False) -> IntDistribution:
    """A whole number from `low` to `high`, both possible."""
    return _range(IntDistribution, low, high, log=log)


def choice(*values: Any) -> CategoricalDistribution:
    """One of the values."""
    # A study keeps JSON, which has no tuples.
    kept: list[Any] = [list(value) if isinstance(value, tuple) else value for value in values]
    return CategoricalDistribution(kept)


def random(ranges: Ranges, count: int, seed: int = 0) -> Points:
    """`count` points drawn independently; the same `seed` draws the same ones, and more of them on a larger `count`."""
    _check_ranges(ranges)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return Points(tuple(study.ask(dict(ranges)).params for _ in range(count)))


@dataclass(frozen=True)
class Search:
    """Points that Optuna chooses from the results so far. Its journal lets many nodes share one study."""

    ranges: Ranges
    trials: int
    sampler: Literal["tpe", "random"] = "tpe"
    # "median" stops a run that is worse than the median of the others at the same step.
    pruner: Literal["none", "median"] = "none"
    seed: int = 0

    def __post_init__(self):
        _check_ranges(self.ranges)
        require_choice("sweep: sampler", self.sampler, ("tpe", "random"))
        require_choice("sweep: pruner", self.pruner, ("none", "median"))
        if self.trials < 1:
            raise UserError(f"sweep: a search of {self.trials} trials; it must be at least 1")


def search(ranges: Ranges, trials: int, **settings: Any) -> Search:
    """A search of `trials` runs; `settings` are the fields of `Search`."""
    return Search(ranges, trials, **settings)


@dataclass(frozen=True)
class Sweep:
    """Points over one config, and how to tell which run was best."""

    config: str
    points: Points | Search
    # A name of `metrics.jsonl` (its last value), or with `evaluate` a dotted name of `metrics.json`.
    metric: str = "loss"
    goal: Literal["min", "max"] = "min"
    # Arguments of `fi-jax evaluate` run on each finished run, e.g. ("--dataset", "utkface", "--data-root", "faces").
    evaluate: Sequence[str] = ()
    # Overrides for every run, as on the command line: ("--train.steps", "100").
    overrides: Sequence[str] = ()

    def __post_init__(self):
        if not isinstance(self.points, Points | Search):
            raise UserError(f"sweep: points is {self.points!r}; make it with grid, zipped, chain, random or search")
        if isinstance(self.points, Points) and not self.points.points:
            raise UserError("sweep: there is no point in it; give every field at least one value")
        if self.goal not in ("min", "max"):
            raise UserError(f"sweep: goal is '{self.goal}'; it must be 'min' or 'max'")

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that the sweep sets, in order of appearance."""
        if isinstance(self.points, Search):
            return tuple(self.points.ranges)
        return tuple(dict.fromkeys(name for point in self.points.points for name in point))


def _range(kind: Callable[..., Any], low: float, high: float, log: bool) -> Any:
    if not low < high:
        raise UserError(f"sweep: a range from {low} to {high} is empty")
    if log and low <= 0:
        raise UserError(f"sweep: a logarithmic range cannot start at {low}; it must be positive")
    return kind(low, high, log=log)


def _values(name: str, given: Iterable[Any]) -> list[Any]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise UserError(f"sweep: field '{name}' needs a list of values, not {given!r}")
    values = [value.item() if isinstance(value, np.generic) else value for value in given]
    if not values:
        raise UserError(f"sweep: field '{name}' has no values")
    return values


def _check_ranges(ranges: Ranges) -> None:
    for name, one in ranges.items():
        if not isinstance(one, BaseDistribution):
            raise UserError(f"sweep: field '{name}' needs uniform, log_uniform, integers or choice, not {one!r}")
