"""What a compiled step sends between devices, read from its HLO text: kind, bytes and how often a step."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALL = re.compile(
    r"\b(?:body|to_apply|calls|branch_computations|true_computation|false_computation)=\{?%?([\w.\-]+(?:, %[\w.\-]+)*)"
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
    bodies, entry = _computations(hlo)
    memo: dict[str, dict[str, tuple[int, int]]] = {}
    totals = _totals(entry, bodies, memo)
    return [Collective(kind, *totals[kind]) for kind in _KINDS if kind in totals]


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in hlo.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            name = match[2]
            bodies[name] = []
            entry = name if match[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _totals(
    name: str, bodies: dict[str, list[str]], memo: dict[str, dict[str, tuple[int, int]]]
) -> dict[str, tuple[int, int]]:
    if name in memo:
        return memo[name]
    memo[name] = {}
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for line in bodies.get(name, ()):
        if " = " not in line:
            continue
        result, _, rest = (
            line.partition(" = ")[2].partition(") ") if line.partition(" = ")[2].startswith("(") else (None, None, None)
        )
        if result is None:
            result, _, rest = line.partition(" = ")[2].partition(" ")
        operation = re.match(r"([a-z\-]+)", rest or "")
        kind = (operation[1] if operation else "").removesuffix("-start")
        if kind in _KINDS:
            sums[kind][0] += 1
            sums[kind][1] += _size(result)
            continue
        trips = _TRIPS.search(line)
        repeat = int(trips[1]) if trips and kind == "while" else 1
        for called in (c.strip(" %") for match in _CALL.finditer(line) for c in match[1].split(",")):
            for inner, (count, size) in _totals(called, bodies, memo).items():
                sums[inner][0] += repeat * count
                sums[inner][1] += repeat * size
    memo[name] = {kind: (count, size) for kind, (count, size) in sums.items()}
    return memo[name]


def _size(shapes: str) -> int:
    return sum(
        _BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in _SHAPE.findall(shapes)
    )
