"""One look for every figure: colours that survive grey print and colour blindness, fonts, and saving."""

import io
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.typing import LineStyleType

from fi_jax.errors import require_choice
from fi_jax.evaluation.figures import MARK
from fi_jax.files import refuse_overwrite, require_writable, write_bytes

# Okabe and Ito's palette (2008), darkest first, so that neighbours differ in lightness too.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
SERIES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, "#000000")
# Beside colour, lines differ by dash and points by marker.
DASHES: tuple[LineStyleType, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT, TRACK = "#1A1A1A", "#6B6B6B", "#E4E7EB"
# Sequential map for counts and shares: monotone in lightness.
SEQUENTIAL = "cividis"

_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    # The same figure gives the same bytes.
    "svg.hashsalt": "fi_jax",
}
FORMATS = ("png", "svg", "pdf")
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def look(i: int) -> dict[str, Any]:
    """Colour, marker and dash of the i-th of several series."""
    return {"color": SERIES[i % 7], "marker": MARKERS[i % 7], "linestyle": DASHES[i % 7]}


@contextmanager
def styled():
    """Applies the look to what is drawn inside the block, and to nothing else."""
    with matplotlib.style.context("default"), matplotlib.rc_context(_SETTINGS):
        yield


def figure(
    width: float, height: float, title: str = "", layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """Makes a figure of that many inches, with a title on top, that belongs to no window system and needs no closing."""
    drawn = Figure(figsize=(width, height), layout=layout)
    if title:
        drawn.suptitle(title, x=0.02, ha="left")
    return drawn


def to_bytes(drawn: Figure, kind: str, outlined: bool = False) -> bytes:
    """Returns the figure as PNG, SVG or PDF bytes, the same ones every time.

    `outlined` draws an SVG's letters as shapes, for readers who may lack the font; else they stay text.
    """
    buffer = io.BytesIO()
    with styled(), matplotlib.rc_context({"svg.fonttype": "path" if outlined else "none"}):
        drawn.savefig(buffer, format=kind, metadata=_UNDATED.get(kind), bbox_inches="tight", pad_inches=0.12)
    return buffer.getvalue()


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Raises `UserError`, before any work, where `save` could not write `path` or would replace what is no figure."""
    require_choice("figure format", _kind(path), FORMATS)
    refuse_overwrite([path], inputs, MARK)
    require_writable(path.parent)


def save(drawn: Figure, path: Path | str) -> Path:
    """Writes the figure in the format that `path` ends with; the file appears whole or not at all."""
    path = Path(path)
    require_choice("figure format", _kind(path), FORMATS)
    write_bytes(path, to_bytes(drawn, _kind(path)))
    return path


def _kind(path: Path) -> str:
    return path.suffix.lstrip(".").lower()
