"""What a compiled step sends between devices, read from its HLO text: kind, bytes and how often a step."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Asynchronous forms that give operands and results.
_WITH_OPERANDS = ("all-gather-start", "collective-permute-start")
_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
# The shape of an instruction's result, and its name.
_INSTRUCTION = re.compile(r" = (.+?) ([a-z][a-z\-]*)\(")
_CALLED = re.compile(
    r"\b(?:body|to_apply|calls|branch_computations|true_computation|false_computation)=\{?((?:%?[\w.\-]+(?:, )?)+)"
)
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_LOOP = re.compile(r"\bcondition=(%[\w.\-]+), body=(%[\w.\-]+)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_BELOW = re.compile(r"ROOT .* compare\((%[\w.\-]+), (%[\w.\-]+)\), direction=LT")
# What a TPU's compiler sends to other slices leaves through the hosts, each pair of `send` and `recv` a collective.
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="([A-Z_]+)"')
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}x')

# A permute of a product: XLA sends a matrix around a ring piece by piece while it multiplies (a decomposed gather).
RING = "ring permute"
BETWEEN_SLICES = " between slices"
_ORDER = (*_KINDS, RING, *(kind + BETWEEN_SLICES for kind in _KINDS))


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one step: `count` of them, `bytes` of results per device in all."""

    kind: str
    count: int
    bytes: int
    # Mesh axes that they cross, as in "data+fsdp"; empty where that was not asked for or is not known.
    axes: str = ""


def collectives(hlo: str, mesh: Mapping[str, int] | None = None) -> list[Collective]:
    """Reads the text of a compiled module. What stands in a loop counts as often as the loop runs, where the text says so.

    With `mesh` (sizes by axis, in order), collectives that cross other axes are counted apart.
    """
    computations, entry = _computations(hlo)

    @cache
    def totals(name: str) -> dict[tuple[str, str, str], tuple[int, int]]:
        """Count and bytes by kind, axes and channel of one computation and all that it calls."""
        sums: dict[tuple[str, str, str], tuple[int, int]] = {}

        def add(key: tuple[str, str, str], count: int, size: int) -> None:
            before = sums.get(key, (0, 0))
            # A TPU's compiler writes one gather down again in every fusion beside which a piece of it goes on.
            sums[key] = min(before, (count, size)) if key[2] and key in sums else (before[0] + count, before[1] + size)

        for line in computations.get(name, ()):
            found = _INSTRUCTION.search(line)
            if found is None:
                continue
            if kind := _kind(found[2], line):
                channel = _CHANNEL.search(line)
                key = kind, _crossed(line, mesh) if mesh else "", channel[1] if channel else ""
                add(key, 1, _size(*found.groups()))
                continue
            repeat = _trips(line, computations) if found[2] == "while" else 1
            for called in (called.strip("% ") for match in _CALLED.finditer(line) for called in match[1].split(",")):
                for inner, (count, size) in totals(called).items():
                    add(inner, repeat * count, repeat * size)
        return sums

    sums: dict[tuple[str, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for (kind, axes, _), (count, size) in totals(entry).items():
        sums[kind, axes] = sums[kind, axes][0] + count, sums[kind, axes][1] + size
    order = {kind: place for place, kind in enumerate(_ORDER)}
    found = sorted(sums.items(), key=lambda item: (order.get(item[0][0], len(order)), item[0]))
    return [Collective(kind, *total, axes) for (kind, axes), total in found]


def _trips(line: str, computations: Mapping[str, list[str]]) -> int:
    """How often a loop runs: XLA writes it on the loop; a TPU's compiler leaves it to condition and body. 1: nothing says so.

    Those loops count up from 0, by 1 or, unrolled, by more, and go on while the counter is below a constant.
    """
    if known := _TRIPS.search(line):
        return int(known[1])
    if not (called := _LOOP.search(line)):
        return 1
    condition, body = ("\n".join(computations.get(name[1:], ())) for name in called.groups())
    if not (below := _BELOW.search(condition)):
        return 1
    place = re.search(rf"{re.escape(below[1])} = .*, index=(\d+)", condition)
    root = re.search(r"ROOT .* tuple\((.*?)\)(?:,|$)", body, re.MULTILINE)
    following = re.findall(r"%[\w.\-]+", root[1])[int(place[1])] if place and root else ""
    added = re.search(rf"{re.escape(following)} = \S+ add\(%[\w.\-]+, (%[\w.\-]+)\)", body) if following else None
    step = _constant(body, added[1]) if added else 1
    return -(-_constant(condition, below[2]) // step)


def _constant(text: str, name: str) -> int:
    """A constant by its name; 1 where it is none."""
    found = re.search(rf"{re.escape(name)} = \S+ constant\((\d+)\)", text)
    return max(int(found[1]), 1) if found else 1


def _kind(name: str, line: str) -> str:
    """What kind of collective an instruction is; empty where it is none."""
    if name == "send" and (transfer := _TRANSFER.search(line)):
        sent = transfer[1].lower().replace("_", "-")
        return ("collective-permute" if sent == "one-to-one" else sent) + BETWEEN_SLICES
    kind = name.removesuffix("-start")
    if kind == "collective-permute" and re.search(r'op_name="[^"]*dot_general"', line):
        return RING
    return kind if kind in _KINDS else ""


def _crossed(line: str, mesh: Mapping[str, int]) -> str:
    """The mesh axes along which the members of a collective's first group differ."""
    members = _first_group(line)
    if slices := _SLICES.search(line):
        # The slices' devices lie one slice after the other in a mesh; the same place in each takes part.
        count, devices = len(slices[1].split(",")), math.prod(mesh.values())
        members = list(range(0, devices, devices // count))
    if members is None:
        return ""
    places = np.unravel_index(members, tuple(mesh.values()))
    return "+".join(axis for axis, place in zip(mesh, places) if len(set(place.tolist())) > 1)


def _first_group(line: str) -> list[int] | None:
    """Devices of the first replica group or source-target pair, in the forms that XLA writes."""
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", line):
        return [int(n) for n in match[1].split(",")]
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        groups, sizes, order = ([int(n) for n in text.split(",")] if text else None for text in match.groups())
        ids = np.arange(math.prod(sizes or ())).reshape(sizes or ()).transpose(order)
        return ids.reshape(groups or ())[0].ravel().tolist()
    named = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))? \{([^}]*)\}"
    if match := re.search(named, line):
        sizes_of = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        varied = re.findall(r"'(\w+)'", match[4])
        ids = np.arange(math.prod(map(int, sizes_of.values())))
        if match[2]:
            sizes, order = ([int(n) for n in text.split(",")] for text in match.group(2, 3))
            ids = ids.reshape(sizes).transpose(order)
        ids = ids.reshape([int(n) for n in sizes_of.values()])
        return ids[tuple(slice(None) if axis in varied else 0 for axis in sizes_of)].ravel().tolist()
    return None


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            bodies[name] = []
            entry = name if match[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _size(shapes: str, name: str) -> int:
    """Bytes of an instruction's result, without a TPU's own numbers and the operands that what only started lists."""
    found = _SHAPE.findall(shapes)
    if name in ("send", *_WITH_OPERANDS):
        found = [one for one in found if one not in (("u32", ""), ("token", ""))]
    if name in _WITH_OPERANDS:
        found = found[len(found) // 2 :]
    return sum(_BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in found)
