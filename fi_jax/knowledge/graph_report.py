"""The co-occurrence graph for people: its edges and hubs in numbers, and a figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def short(name: str) -> str:
    """Returns a label as a person reads it on an axis: "Wearing_Hat" -> "Wearing Hat"."""
    return name.replace("_", " ")


def summarise(
    names: Sequence[str], p: Float[np.ndarray, "n n"], c: Float[np.ndarray, "n n"], lift: Float[np.ndarray, "n n"]
) -> dict:
    """Returns edges (strongest first) and what sort of graph they make."""
    rows, columns = np.nonzero(c)
    order = np.argsort(-p[rows, columns], kind="stable")
    edges = [
        {"from": names[i], "to": names[j], "p": round(float(p[i, j]), 4), "lift": round(float(lift[i, j]), 3)}
        for i, j in zip(rows[order], columns[order], strict=True)
    ]
    incoming = c.sum(0)
    hubs = np.argsort(-incoming, kind="stable")[:9]
    values = lift[rows, columns]
    return {
        "num_edges": len(edges),
        "labels_without_neighbours": [names[i] for i in np.flatnonzero(c.sum(1) == 0).tolist()],
        "hubs": {names[i]: int(incoming[i]) for i in hubs},
        "share_into_hubs": round(float(incoming[hubs].sum() / max(len(edges), 1)), 4),
        "edges_below_chance": int((values < 1).sum()),
        "edges_clearly_below_chance": int((values < 0.95).sum()),
        "edges": edges,
    }


def draw_graph(
    names: Sequence[str],
    p: Float[np.ndarray, "n n"],
    c: Float[np.ndarray, "n n"],
    lift: Float[np.ndarray, "n n"],
    title: str,
    declared: Bool[np.ndarray, "n n"] | None = None,
    num_bars: int = 25,
) -> "Figure":
    """Returns a figure: P as a heat map with the edges of C marked, and the edges of highest P as bars.

    Row i, column j is P(j | i); the labels keep their order. A tick on each bar shows P(j) (P over lift), so what is
    common is told from what is learnt. Edges `declared` by bridges, not counted, are red. The caller saves the figure.
    """
    from matplotlib.figure import Figure

    n = len(names)
    figure = Figure(figsize=(max(16, 0.26 * n + 8), max(9, 0.22 * n + 2)), layout="constrained")
    heat, bars = figure.subplots(1, 2, width_ratios=[2, 1])
    shown = np.where(np.eye(n, dtype=bool), np.nan, p)
    image = heat.imshow(shown, vmin=0, vmax=1, cmap="viridis")
    heat.set_facecolor("0.85")
    edge_rows, edge_columns = np.nonzero(c)
    told = np.zeros(len(edge_rows), bool) if declared is None else declared[edge_rows, edge_columns]
    dots = np.where(told, "tab:red", "white")
    heat.scatter(edge_columns, edge_rows, s=9, c=dots, edgecolors="black", linewidths=0.4)
    bridged = f", {told.sum()} by bridges (red)" if told.any() else ""
    heat.set_xticks(range(n), [short(name) for name in names], rotation=90, fontsize=7)
    heat.set_yticks(range(n), [short(name) for name in names], fontsize=7)
    heat.set_xlabel("j: what follows")
    heat.set_ylabel("i: what is given")
    heat.set_title(f"{title}\np(j | i); dots are the {len(edge_rows)} edges of C{bridged}", fontsize=10)
    figure.colorbar(image, ax=heat, shrink=0.7, label="p(j | i)")

    # Where bridges are drawn, theirs are half of the bars.
    ranked = np.argsort(-p[edge_rows, edge_columns], kind="stable")
    order = np.concatenate([ranked[told[ranked]][: num_bars // 2], ranked[~told[ranked]]])[:num_bars]
    rows, columns = edge_rows[order], edge_columns[order]
    values = p[rows, columns]
    base = values / np.maximum(lift[rows, columns], 1e-9)
    places = np.arange(len(order))
    bars.barh(places, values, color=np.where(told[order], "tab:red", "tab:blue"), height=0.7, label="p(j | i)")
    bars.scatter(base, places, marker="|", s=90, c="tab:orange", linewidths=2, label="p(j)", zorder=3)
    bars.set_yticks(
        places, [f"{short(names[i])} → {short(names[j])}" for i, j in zip(rows, columns, strict=True)], fontsize=7
    )
    bars.set_ylim(len(order) - 0.4, -0.6)
    bars.set_xlim(0, 1)
    bars.set_title(f"The {len(order)} strongest edges", fontsize=10)
    bars.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), ncols=2, fontsize=8)
    return figure
