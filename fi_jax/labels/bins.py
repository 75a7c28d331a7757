"""Bins of a number of one's own: their names as options, and the number that each stands for."""

from collections.abc import Sequence

from fi_jax.errors import UserError


def bin_names(edges: Sequence[float]) -> tuple[str, ...]:
    """Names the bins between edges in rising order; the first and the last are open."""
    inner = (f"{low:g} to {high:g}" for low, high in zip(edges, edges[1:], strict=False))
    return (f"below {edges[0]:g}", *inner, f"{edges[-1]:g} or more")


def bin_centres(edges: Sequence[float]) -> tuple[float, ...]:
    """The middle of every bin; an open bin counts as wide as its neighbour (one with a single edge, as wide as 1)."""
    first = edges[1] - edges[0] if len(edges) > 1 else 1.0
    last = edges[-1] - edges[-2] if len(edges) > 1 else 1.0
    closed = (edges[0] - first, *edges, edges[-1] + last)
    return tuple((low + high) / 2 for low, high in zip(closed, closed[1:], strict=False))


def edges_of(names: Sequence[str]) -> tuple[float, ...]:
    """The edges that `bin_names` has named. Raises `UserError` for other names."""
    try:
        first = float(names[0].removeprefix("below "))
        edges = (first, *(float(name.split(" to ")[1]) for name in names[1:-1]))
    except (ValueError, IndexError):
        edges = ()
    if not edges or bin_names(edges) != tuple(names):
        raise UserError(f"the options {list(names)} are no bins of a number ('below 1', '1 to 2', '2 or more')")
    return edges
