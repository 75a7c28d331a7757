"""Checks a checkpoint against the leaf table: every key and every leaf is accounted for, all faults in one message."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fi_jax.errors import UserError
from fi_jax.weights.layouts import Layout
from fi_jax.weights.leaf import Leaf


class Match(NamedTuple):
    """A checkpoint that fits: `keys` maps the table's keys to the file's own; `unused` are the file's keys left out."""

    keys: Mapping[str, str]
    unused: tuple[str, ...]


def match(name: str, leaves: Sequence[Leaf], shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> Match:
    """Accounts for every key of a checkpoint and every leaf of ours.

    Args:
      name: what errors call the checkpoint.
      shapes: the checkpoint's keys and shapes.

    Raises:
      UserError: one message with all missing, unexpected and misshapen keys.
    """
    # Before anything is made for every layer.
    layers = max((leaf.layers for leaf in leaves), default=0)
    if layers > len(shapes):
        raise UserError(f"{name} says that it has {layers} layers but holds {len(shapes)} tensors; it is damaged")
    keys: dict[str, str] = {}
    twice, unused = [], []
    for key in shapes:
        known = table_key(key, layout)
        if any(re.fullmatch(pattern, known) for pattern in layout.unused):
            unused.append(key)
        elif known in keys:
            twice.append(f"{keys[known]} and {key}")
        else:
            keys[known] = key
    missing, misshapen = [], []
    wanted: set[str] = set()
    for leaf in leaves:
        new = [source for source in leaf.sources if source not in wanted]
        wanted.update(new)
        for source in new:
            if source not in keys:
                missing.append(f"{source} {list(leaf.source_shape)}")
            elif (found := shapes[keys[source]]) != leaf.source_shape:
                misshapen.append(f"{keys[source]} {list(found)} instead of {list(leaf.source_shape)}")
    unexpected = [f"{key} {list(shapes[key])}" for known, key in keys.items() if known not in wanted]
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": misshapen,
        "stored twice": twice,
    }
    listed = [f"{what}: {', '.join(grouped(entries))}" for what, entries in problems.items() if entries]
    if listed:
        raise UserError(f"{name} does not fit its own description or this architecture; {'; '.join(listed)}")
    return Match(keys, tuple(unused))


def table_key(key: str, layout: Layout) -> str:
    """Returns the leaf table's name of a checkpoint's key."""
    for pattern, replacement in layout.renames:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return key


def grouped(entries: Iterable[str]) -> list[str]:
    """Joins entries that differ only in a layer's number: `layers.{0-31}.norm.weight [8]`."""
    groups: dict[tuple[str, str], list[int]] = {}
    for entry in entries:
        found = re.search(r"(?<=\.)\d+(?=\.)", entry)
        where = (entry[: found.start()], entry[found.end() :]) if found else (entry, "")
        groups.setdefault(where, []).extend([int(found.group())] if found else [])
    return [before + _numbers(numbers) + after for (before, after), numbers in groups.items()]


def _numbers(numbers: list[int]) -> str:
    if len(numbers) <= 1:
        return "".join(map(str, numbers))
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "}"
