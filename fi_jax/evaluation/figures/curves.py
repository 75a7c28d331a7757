"""Training curves: every loss term, and whatever else was logged, from the lines of `metrics.jsonl`."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fi_jax.config import LossConfig
from fi_jax.errors import UserError
from fi_jax.evaluation.figures import style

_TERMS = tuple(f.name for f in dataclasses.fields(LossConfig))
_NOT_DRAWN = ("step", "time", "wall", "seconds", "epoch", "timestamp")


def _panel(name: str) -> str:
    """Loss terms share a panel; anything else is grouped by what stands before the slash."""
    head, _, last = name.rpartition("/")
    if last == "loss" or last in _TERMS or head == "loss":
        return "loss" if head in ("", "loss") else f"{head} loss"
    return head or last


def series(records: Sequence[Mapping]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns `(steps, values)` of every number logged beside a `step`; a step logged twice keeps its last value."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if name in _NOT_DRAWN or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            # A whole number of 400 digits is no float.
            if "step" in record and (isinstance(value, float) or abs(value) < 1e300):
                found.setdefault(name, {})[int(record["step"])] = float(value)
    return {n: (np.array(sorted(v)), np.array([v[s] for s in sorted(v)])) for n, v in found.items()}


def smooth(values: np.ndarray, span: int) -> np.ndarray:
    """Centred running mean over at most `span` points; the ends average over what there is."""
    kernel = np.ones(span)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def curves_figure(runs: Mapping[str, Sequence[Mapping]], title: str = "") -> Figure:
    """Draws one panel for the loss terms and one for each other kind of number.

    Args:
      runs: run name → its `metrics.jsonl` records, each with `step`. Several runs share panels, told apart by dash.
      title: a line on top.
    """
    found = {name: series(records) for name, records in runs.items()}
    if not any(found.values()):
        raise UserError("metrics.jsonl holds no numbers yet; train at least train.log_every steps")
    panels: dict[str, list[str]] = {}
    for lines in found.values():
        for name in lines:
            members = panels.setdefault(_panel(name), [])
            if name not in members:
                members.append(name)
    order = sorted(panels, key=lambda p: ("loss" not in p, p))
    columns = min(2, len(order))
    rows = -(-len(order) // columns)
    with style.styled():
        drawn = style.figure(4.6 * columns, 2.9 * rows, title)
        grid = drawn.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, order):
            for i, name in enumerate(panels[panel]):
                for j, lines in enumerate(found.values()):
                    if name not in lines:
                        continue
                    steps, values = lines[name]
                    look = {"color": style.SERIES[i % 7], "linestyle": style.DASHES[(j if len(found) > 1 else i) % 7]}
                    # Colour says which term, dash which run (of a single run, the term again).
                    label = None if j else name.rpartition("/")[2]
                    if len(steps) > 60:
                        axes.plot(steps, values, color=look["color"], linewidth=0.5, alpha=0.3)
                        values = smooth(values, len(steps) // 30)
                    axes.plot(
                        steps, values, linewidth=1.5, label=label, marker="o" if len(steps) == 1 else None, **look
                    )
            positive = [v for n in panels[panel] for lines in found.values() if n in lines for v in lines[n][1]]
            if "loss" in panel and min(positive) > 0 and max(positive) > 30 * min(positive):
                axes.set_yscale("log")
            axes.set_title(panel.replace("_", " "))
            axes.set_xlabel("step")
            axes.grid(color=style.TRACK)
            if len(panels[panel]) > 1:
                axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=4, columnspacing=1)
        for axes in list(grid.flat)[len(order) :]:
            axes.remove()
        if len(found) > 1:
            runs_drawn = [Line2D([], [], color=style.INK, linestyle=style.DASHES[j % 7]) for j in range(len(found))]
            drawn.legend(runs_drawn, list(found), loc="outside upper right", ncols=3)
    return drawn
