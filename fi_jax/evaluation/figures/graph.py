"""The graph behind Ĉ: labels on a circle, its strongest edges as arrows."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from fi_jax.errors import UserError
from fi_jax.evaluation.figures import style
from fi_jax.evaluation.figures.headings import _OF_ATTRIBUTE, HEADINGS, readable

_MARGIN = 0.34


def _heading(name: str) -> str:
    of_group = {"age": "Age group", "years": "Age in years", "race": "Race", "expression": "Expression"}
    prefix, colon, _ = name.partition(":")
    return of_group.get(prefix, "Other") if colon else _OF_ATTRIBUTE.get(name, "Other")


def strongest_edges(weights: Float[np.ndarray, "n n"], most: int) -> list[tuple[int, int, float]]:
    """Returns `(from, to, weight)` of the largest positive entries off the diagonal, largest first."""
    off = np.array(weights, float)
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, off.shape)
    return [(int(i), int(j), float(off[i, j])) for i, j in zip(rows, columns) if off[i, j] > 0]


def graph_figure(names: Sequence[str], weights: Float[np.ndarray, "n n"], most: int = 60, title: str = "") -> Figure:
    """Draws the strongest edges i → j of a graph over labels.

    Args:
      names: the labels, in the order of the matrix.
      weights: Ĉ, or the conditional probabilities p_ij behind it; only entries off the diagonal are drawn.
      most: how many edges. Labels without any of them are left out, so that the rest can be read.
      title: a line on top.
    """
    edges = strongest_edges(weights, most)
    if not edges:
        raise UserError("the graph has no edge between two labels; lower knowledge.tau")
    used = sorted({i for edge in edges for i in edge[:2]})
    headings = [*HEADINGS[:-1], "Age group", "Age in years", "Race", "Expression", "Other"]
    used.sort(key=lambda i: (headings.index(_heading(names[i])), i))
    present = [h for h in headings if any(_heading(names[i]) == h for i in used)]
    angles = {i: np.pi / 2 - 2 * np.pi * k / len(used) for k, i in enumerate(used)}
    where = {i: (np.cos(a), np.sin(a)) for i, a in angles.items()}
    ends = {i: (0.97 * x, 0.97 * y) for i, (x, y) in where.items()}
    low, high = min(w for *_, w in edges), max(w for *_, w in edges)
    into = {i: sum(j == i for _, j, _ in edges) for i in used}
    with style.styled():
        drawn = style.figure(7.2, 7.4, layout=None)
        axes = drawn.add_axes((0, 0, 1, 0.95))
        axes.set(xlim=(-1 - _MARGIN * 1.35, 1 + _MARGIN * 1.35), ylim=(-1 - _MARGIN, 1 + _MARGIN), aspect="equal")
        axes.axis("off")
        for i, j, weight in reversed(edges):
            strength = (weight - low) / (high - low) if high > low else 1.0
            axes.add_patch(
                FancyArrowPatch(
                    ends[i], ends[j], connectionstyle="arc3,rad=0.18", arrowstyle="-|>", shrinkA=3, shrinkB=4,
                    mutation_scale=7 + 3 * strength, linewidth=0.5 + 1.8 * strength, alpha=0.35 + 0.6 * strength,
                    color=style.BLUE if strength > 0.5 else style.FAINT,
                )
            )  # fmt: skip
        for i in used:
            x, y = where[i]
            kind = present.index(_heading(names[i]))
            axes.plot(
                x,
                y,
                marker=style.MARKERS[kind % 7],
                color=style.SERIES[kind % 7],
                markersize=5 + 0.6 * min(into[i], 10),
            )
            degrees = np.degrees(angles[i]) % 360
            flip = 90 < degrees < 270
            axes.text(
                1.06 * x, 1.06 * y, readable(names[i]), fontsize=8, rotation=degrees - 180 if flip else degrees,
                rotation_mode="anchor", ha="right" if flip else "left", va="center",
            )  # fmt: skip
        drawn.text(0.02, 0.975, title or "Strongest relations between labels", weight="bold", fontsize=11, va="top")
        note = f"Arrow i → j: a face with i tends to have j; {len(edges)} edges, weight {low:.2f} to {high:.2f}."
        drawn.text(0.02, 0.945, note, fontsize=8, color=style.FAINT, va="top")
    return drawn
