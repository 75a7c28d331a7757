"""Attribution of one answer to image and segmentation tokens, drawn over the face and its map."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from fi_jax.evaluation.figures import style
from fi_jax.evaluation.figures.ask import part_map

# Imports JAX, which drawing does not need.
if TYPE_CHECKING:
    from fi_jax.inference.attribution import Attribution

Array = np.ndarray

# Blue against, orange for: told apart by colour-blind readers; both grow darker, and the strongest tokens are outlined.
_COLOURS = LinearSegmentedColormap.from_list(
    "attribution", [(0.0, "#00436B"), (0.35, style.SKY), (0.5, "#FFFFFF"), (0.65, style.ORANGE), (1.0, "#A33B00")]
)
# Tokens that together carry this share of what is for the answer are outlined.
OUTLINED = 0.5


def strongest(values: Float[Array, "gy gx"], share: float = OUTLINED) -> np.ndarray:
    """Returns which tokens are the fewest that together carry `share` of the positive values (`gy gx` bool)."""
    positive = np.maximum(values, 0).ravel()
    order = np.argsort(-positive, kind="stable")
    before = np.cumsum(positive[order]) - positive[order]
    chosen = np.zeros(positive.size, bool)
    chosen[order] = (before < share * positive.sum()) & (positive[order] > 0)
    return chosen.reshape(values.shape)


def attribution_figure(
    image: UInt8[Array, "y x 3"], mask: UInt8[Array, "y x"], attribution: "Attribution", title: str = ""
) -> Figure:
    """Draws the face, then the attribution over the face and over the map, on one scale.

    Args:
      image: the square crop that was asked about.
      mask: its map, class indices 0..18, of any size.
      attribution: of one option to the tokens (`inference.attribution.attribute`).
      title: a line on top; the question and the answer where empty.
    """
    question, segmentation = attribution.question, attribution.segmentation
    most = max(np.abs(attribution.image).max(), 0 if segmentation is None else np.abs(segmentation).max())
    most = float(most) or 1.0
    percent = 100 / (1 + np.exp(-attribution.log_odds))
    text = question.text if question.is_binary else question.text.split("?")[0] + "?"
    share = (
        f"; {100 * attribution.image_share:.0f} % of the attribution in the photo" if segmentation is not None else ""
    )
    panels = [("Photo", image, None), ("Attribution to the photo", image, attribution.image)]
    if segmentation is not None:
        panels.append(("Attribution to the map of parts", part_map(mask)[0], segmentation))
    with style.styled():
        drawn = style.figure(2.8 * len(panels), 4, title or text)
        places = drawn.subplots(1, len(panels), subplot_kw={"xticks": [], "yticks": []})
        for axes, (name, under, values) in zip(places, panels):
            shown = axes.imshow(under) if values is None else _overlay(axes, under, values, most)
            axes.set_title(name, fontsize=9)
            axes.spines[:].set(visible=True, color=style.FAINT, linewidth=0.6)
        bar = drawn.colorbar(
            shown, ax=places, location="bottom", ticks=[-most, 0, most], aspect=50, shrink=0.6, pad=0.04
        )
        bar.ax.set_xticklabels([f"against {most:.2g}", "0", f"for {most:.2g}"])
        bar.set_label(
            f"{question.options[attribution.option]} ({percent:.0f} %){share}\na token's share of the log-odds, nats; "
            f"outlined: the tokens that carry {100 * OUTLINED:.0f} % of what is for it",
            fontsize=8,
        )
    return drawn


def _overlay(axes: Axes, under: UInt8[Array, "y x 3"], values: Float[Array, "gy gx"], most: float):
    """Draws an attribution over a pale grey picture; opacity grows with strength. Returns the image for the colour bar."""
    rows, columns = values.shape
    grey = under.astype(float) @ np.array([0.299, 0.587, 0.114])
    extent = (0, columns, rows, 0)
    axes.imshow(128 + grey / 2, cmap="gray", vmin=0, vmax=255, extent=extent)
    strength = np.clip(np.abs(values) / most, 0, 1)
    shown = axes.imshow(
        values, cmap=_COLOURS, vmin=-most, vmax=most, alpha=0.12 + 0.73 * strength, extent=extent, aspect="auto"
    )
    for (y, x), chosen in np.ndenumerate(strongest(values)):
        if chosen:
            axes.plot([x, x + 1, x + 1, x, x], [y, y, y + 1, y + 1, y], color=style.INK, linewidth=0.9)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    return shown
