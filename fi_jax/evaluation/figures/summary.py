"""Figures of a `metrics.json` entry: confusion matrix, reliability diagram, groups with intervals, attributes."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fi_jax.errors import UserError
from fi_jax.evaluation.figures import style
from fi_jax.evaluation.figures.headings import readable
from fi_jax.evaluation.titles import GROUP_TITLES, format_value, metric_title

_GROUPINGS = {name: title.capitalize() for name, title in GROUP_TITLES.items()}


_PERCENT = PercentFormatter(1, decimals=0, symbol=" %")


def confusion_figure(result: Mapping, title: str = "") -> Figure:
    """Draws a task's confusion matrix: rows are truths, shares of a row in percent, faces of each row beside it.

    `result` is one task of an entry; a last column "unreadable" appears where answers could not be read.
    """
    classes = result["confusion"]["classes"]
    counts = np.asarray(result["confusion"]["counts"], float)
    columns = list(classes)
    if any(result["confusion"]["unreadable"]):
        counts = np.column_stack([counts, result["confusion"]["unreadable"]])
        columns.append("unreadable")
    totals = counts.sum(1)
    shares = np.divide(counts, totals[:, None], out=np.zeros_like(counts), where=totals[:, None] > 0)
    longest = max(len(c) for c in columns)
    with style.styled():
        size = (1.9 + 0.075 * longest + 0.52 * len(columns), 0.95 + 0.06 * longest + 0.52 * len(classes))
        drawn = style.figure(*size)
        axes = drawn.subplots()
        axes.imshow(shares, cmap=style.SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
        for i, j in np.ndindex(shares.shape):
            if totals[i]:
                # cividis turns light past the middle.
                colour = "white" if shares[i, j] < 0.55 else "black"
                axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), [f"{c} ({n:.0f})" for c, n in zip(classes, totals)])
        axes.set_xlabel("answer")
        axes.set_ylabel("truth (faces)")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title or "Confusion, % of each truth")
    return drawn


def reliability_figure(results: Mapping[str, Mapping], title: str = "") -> Figure:
    """Draws reliability diagrams: accuracy of answers against the probability given to them.

    `results` maps a legend's words to a task's result; results without probabilities are left out.
    """
    shown = {name: r for name, r in results.items() if r.get("calibration")}
    if not shown:
        raise UserError("these answers carry no probabilities, so there is no reliability diagram")
    with style.styled():
        drawn = style.figure(4.2, 4.7 + 0.19 * (len(shown) + 1), title or "Reliability")
        axes, below = drawn.subplots(2, 1, height_ratios=(4, 1), sharex=True)
        axes.plot([0, 1], [0, 1], color=style.FAINT, linewidth=0.8, linestyle=(0, (2, 2)), label="as sure as right")
        for i, (name, result) in enumerate(shown.items()):
            bins = [b for b in result["calibration"]["bins"] if b["count"]]
            x, total = [b["confidence"] for b in bins], sum(b["count"] for b in bins)
            label = f"{name}: ECE {100 * result['calibration']['ece']:.1f} %"
            axes.plot(x, [b["accuracy"] for b in bins], markersize=4, linewidth=1.3, label=label, **style.look(i))
            below.plot(x, [b["count"] / total for b in bins], markersize=3, linewidth=1, **style.look(i))
        axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share right")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), labelspacing=0.3)
        below.locator_params(axis="y", nbins=3, prune="upper")
        below.set(ylim=(0, None), xlabel="probability of the answer given", ylabel="answers")
        for axis in (axes.yaxis, below.xaxis, below.yaxis):
            axis.set_major_formatter(_PERCENT)
    return drawn


def groups_figure(results: Mapping[str, Mapping], title: str = "") -> Figure:
    """Draws the headline metric of each gender, race and age group with its interval.

    `results` maps a legend's words to a task's result (of one task); several are drawn side by side.
    """
    shown = {name: r for name, r in results.items() if r["groups"]}
    if not shown:
        raise UserError("these faces state neither gender, race nor age, so there is no breakdown")
    # Grouping → group → how many faces.
    rows: dict[str, dict[str, int]] = {}
    for result in shown.values():
        for grouping, found in result["groups"].items():
            for name, group in found["groups"].items():
                faces = rows.setdefault(grouping, {})
                faces[name] = max(group["faces"], faces.get(name, 0))
    metric = next(iter(shown.values()))["headline"]
    heights = [len(faces) for faces in rows.values()]
    title = title or ("By group" if len(shown) > 1 else f"By group: {next(iter(shown))}")
    with style.styled():
        drawn = style.figure(5.2, 0.9 + 0.24 * sum(heights) + 0.3 * len(rows) + 0.16 * len(shown), title)
        panels = drawn.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, grouping in zip(panels, rows):
            for i, (name, result) in enumerate(shown.items()):
                groups = result["groups"].get(grouping, {"groups": {}})["groups"]
                places = [y for y, g in enumerate(rows[grouping]) if groups.get(g, {}).get("value") is not None]
                found = [groups[list(rows[grouping])[y]] for y in places]
                edges = [[g["value"] - g["low"] for g in found], [g["high"] - g["value"] for g in found]]
                axes.errorbar(
                    [g["value"] for g in found], np.array(places) + 0.2 * (2 * i - len(shown) + 1) / len(shown),
                    xerr=np.maximum(edges, 0), markersize=4.5, linewidth=1.3, capsize=2, label=name,
                    **style.look(i) | {"linestyle": ""},
                )  # fmt: skip
                overall = result["metrics"][metric]["value"]
                axes.axvline(overall, color=style.SERIES[i % 7], linewidth=0.8, linestyle=style.DASHES[1], zorder=0)
            axes.set_title(_GROUPINGS[grouping], fontsize=9)
            axes.set_yticks(range(len(rows[grouping])), [f"{name} ({n})" for name, n in rows[grouping].items()])
            axes.set_ylim(len(rows[grouping]) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color=style.TRACK)
        if metric != "mae_years":
            axes.xaxis.set_major_formatter(_PERCENT)
        axes.set_xlabel(f"{metric_title(metric)}; 95 % interval; dashed: all faces")
        if len(shown) > 1:
            drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawn


def attributes_figure(result: Mapping, metric: str = "accuracy", title: str = "") -> Figure:
    """Draws every attribute's accuracy against always answering its majority, largest gain on top.

    `metric` is "accuracy", or "balanced_accuracy" or "f1", whose baselines are 50 % and 0.
    """
    attributes = result["per_attribute"]
    baseline = {
        name: {"accuracy": a["baseline"], "balanced_accuracy": 0.5, "f1": 0.0}[metric] for name, a in attributes.items()
    }
    names = [n for n in attributes if attributes[n][metric] is not None]
    names.sort(key=lambda n: baseline[n] - attributes[n][metric])
    with style.styled():
        drawn = style.figure(5.6, 0.9 + 0.19 * len(names), title or f"Attributes: {metric_title(metric)}")
        axes = drawn.subplots()
        for y, name in enumerate(names):
            value, base = attributes[name][metric], baseline[name]
            colour = style.BLUE if value >= base else style.VERMILION
            axes.plot([base, value], [y, y], color=colour, linewidth=2.2, alpha=0.5, solid_capstyle="butt")
            axes.plot(base, y, marker="|", color=style.INK, markersize=7, linestyle="")
            axes.plot(value, y, marker="o" if value >= base else "s", color=colour, markersize=4.5, linestyle="")
        axes.set_yticks(range(len(names)), [readable(n) for n in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=style.TRACK)
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.set_xlabel(
            "bar: majority;  dot: better than it;  square: worse" if metric == "accuracy" else "bar: chance"
        )
    return drawn


def headline_text(result: Mapping) -> str:
    """The headline in words: "accuracy 87.5 % [80.0, 93.3], majority 50.0 %"."""
    metric = result["headline"]
    score = result["metrics"][metric]
    unit = "" if metric == "mae_years" else " %"
    value, low, high = (format_value(metric, score[k]) for k in ("value", "low", "high"))
    text = f"{metric_title(metric)} {value}{unit} [{low}, {high}]"
    if score.get("baseline") is not None and math.isfinite(score["baseline"]):
        text += f", majority {format_value(metric, score['baseline'])}{unit}"
    return text
