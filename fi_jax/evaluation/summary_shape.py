"""What a `metrics.json` must look like, so that a damaged one is told by the name of the field that is wrong."""

import math
from types import UnionType
from typing import Any

from fi_jax.errors import UserError
from fi_jax.evaluation.titles import SETTINGS, SOURCE_TITLES

# A mapping of fixed names; a name that ends in "?" may be missing, "*" stands for every name that is there. A list of
# one shape; a tuple of words; a type, `float` taking whole numbers too.
_SCORE = {"value": float | None, "low": float | None, "high": float | None, "baseline?": float | None}
_GROUP = {"value": float | None, "low": float | None, "high": float | None, "faces": int}
_BIN = {"confidence": float | None, "accuracy": float | None, "count": int}
_ATTRIBUTE = {"accuracy": float | None, "balanced_accuracy": float | None, "f1": float | None, "baseline": float | None}
_RESULT: dict[str, Any] = {
    "headline": str,
    "metrics": {"*": _SCORE},
    "baseline": {"from": str},
    "groups": {"*": {"gap": float | None, "groups": {"*": _GROUP}}},
    "faces": int,
    "unreadable?": int,
    "answers?": int,
    "calibration?": {"ece": float | None, "bins": [_BIN]},
    "confusion?": {"classes": [str], "counts": [[int]], "unreadable": [int]},
    "per_attribute?": {"*": _ATTRIBUTE},
}
_RULES = _RESULT | {
    "annotations": float | None,
    "by_rule": {"*": {"why": str, "rate": float | None, "faces": int}},
    "positive_rates?": {"*": {"answered": float, "annotated": float | None, "faces": int}},
    "examples": [{"image": str, "rules": [str]}],
    "consistent?": {"*": {"as_answered": float, "consistent": float}},
}
_SUMMARY = {
    "entries": [
        {
            "dataset": str,
            "source": tuple(SOURCE_TITLES),
            "setting": SETTINGS,
            "tasks": {"*": _RESULT},
            "rules?": _RULES,
        }
    ],
    "meta": {
        "cells?": [
            {"dataset": str, "setting": str, "model": str | None, "trained_on": [str], "unreadable?": {"*": str}}
        ],
        "config?": {},
    },
}


def check_summary(summary: Any) -> None:
    """Raises `UserError`, which names the field, unless everything that tables, figures and reports read is there."""
    _check(summary, _SUMMARY, "")
    for i, entry in enumerate(summary["entries"]):
        results = entry["tasks"] | ({"rules": entry["rules"]} if entry.get("rules") else {})
        for task, result in results.items():
            where = f"entries.{i}.{task}"
            score = result["metrics"].get(result["headline"])
            if score is None or score["value"] is None:
                raise UserError(f"{where}.headline is '{result['headline']}', which is none of its metrics")
            confusion = result.get("confusion")
            if confusion:
                k = len(confusion["classes"])
                if {len(confusion["counts"]), len(confusion["unreadable"]), *map(len, confusion["counts"])} != {k}:
                    raise UserError(f"{where}.confusion is no matrix of {k} classes")


def _check(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, dict):
        _require(isinstance(value, dict), value, "an object", where)
        for name, inner in shape.items():
            key = name.removesuffix("?")
            if name == "*":
                for each, item in value.items():
                    _check(item, inner, f"{where}.{each}")
            elif name == key or value.get(key) is not None:
                _require(key in value, value, f"an object with '{key}'", where)
                _check(value[key], inner, f"{where}.{key}")
    elif isinstance(shape, list):
        _require(isinstance(value, list), value, "a list", where)
        for i, item in enumerate(value):
            _check(item, shape[0], f"{where}.{i}")
    elif isinstance(shape, tuple):
        _require(value in shape, value, f"one of {', '.join(shape)}", where)
    elif isinstance(shape, UnionType):
        if value is not None:
            _check(value, shape.__args__[0], where)
    elif shape is str:
        _require(isinstance(value, str), value, "text", where)
    else:
        # Compared first: a whole number of 400 digits is no float.
        is_number = isinstance(value, int if shape is int else int | float) and not isinstance(value, bool)
        _require(is_number and abs(value) < 1e12 and math.isfinite(value), value, "a number", where)


def _require(holds: bool, value: Any, kind: str, where: str) -> None:
    if not holds:
        raise UserError(f"{where.lstrip('.') or 'its top'} is not {kind} ({str(value)[:40]})")
