"""Checks a checkpoint against the leaf table: every key and every leaf is accounted for, all faults in one message."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fi_jax.errors import UserError
from fi_jax.weights.leaf_table import Layout, Leaf


@dataclass(frozen=True)
class Match:
    """A checkpoint that fits: `keys` maps the table's keys to the file's own; `unused` are the file's keys left out."""

    leaves: tuple[Leaf, ...]
    keys: Mapping[str, str]
    unused: tuple[str, ...]
    # Leaves that the checkpoint does not have and was allowed not to have.
    initialised: tuple[str, ...]


def match(
    name: str, leaves: Sequence[Leaf], shapes: Mapping[str, tuple[int, ...]], layout: Layout, allow_new: str = ""
) -> Match:
    """Accounts for every key of a checkpoint and every leaf of ours.

    Args:
      name: what errors call the checkpoint.
      shapes: the checkpoint's keys and shapes.
      allow_new: a regular expression over our paths; such leaves may be absent.

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
    missing, misshapen, initialised, kept = [], [], [], []
    wanted: set[str] = set()
    for leaf in leaves:
        absent = [source for source in leaf.sources if source not in keys]
        wanted.update(leaf.sources)
        if absent and len(absent) == len(leaf.sources) and allow_new and re.fullmatch(allow_new, leaf.path):
            initialised.append(leaf.path)
            continue
        kept.append(leaf)
        missing += [f"{source} {list(leaf.source_shape)}" for source in absent]
        for source in leaf.sources:
            found = shapes[keys[source]] if source in keys else None
            if found is not None and found != leaf.source_shape:
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
    return Match(tuple(kept), keys, tuple(unused), tuple(initialised))


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
