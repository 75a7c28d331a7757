"""What a compiled step sends between devices, read from its HLO text: kind, bytes and how often a step."""

import math
import re
from dataclasses import dataclass
from functools import cache

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
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


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one step: `count` of them, `bytes` of results per device in all."""

    kind: str
    count: int
    bytes: int


def collectives(hlo: str) -> list[Collective]:
    """Reads the text of a compiled module. What stands in a loop counts as often as the loop runs, where XLA knows."""
    computations, entry = _computations(hlo)

    @cache
    def totals(name: str) -> dict[str, tuple[int, int]]:
        """Count and bytes by kind of one computation and all that it calls."""
        sums = dict.fromkeys(_KINDS, (0, 0))
        for line in computations.get(name, ()):
            found = _INSTRUCTION.search(line)
            if found is None:
                continue
            kind = found[2].removesuffix("-start")
            if kind in _KINDS:
                sums[kind] = (sums[kind][0] + 1, sums[kind][1] + _size(found[1]))
                continue
            trips = _TRIPS.search(line)
            repeat = int(trips[1]) if trips and kind == "while" else 1
            for called in (called.strip("% ") for match in _CALLED.finditer(line) for called in match[1].split(",")):
                for inner, (count, size) in totals(called).items():
                    sums[inner] = (sums[inner][0] + repeat * count, sums[inner][1] + repeat * size)
        return sums

    return [Collective(kind, *found) for kind, found in totals(entry).items() if found[0]]


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


def _size(shapes: str) -> int:
    return sum(
        _BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in _SHAPE.findall(shapes)
    )
