"""The answer card: a photo, its segmentation map, and the answers with their probabilities."""

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fi_jax.evaluation.figures import style
from fi_jax.evaluation.figures.headings import HEADINGS, heading_of, readable
from fi_jax.inference.answers import Answer
from fi_jax.labels.face_parts import CLASSES

Array = np.ndarray

# The 19 classes as 14 parts that can be told apart in print: left and right share a colour.
PARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("background", "#FFFFFF", ("background",)),
    ("skin", "#F3D9B8", ("skin",)),
    ("nose", "#D9A066", ("nose",)),
    ("brows", "#3B2F2F", ("l_brow", "r_brow")),
    ("eyes", "#0072B2", ("l_eye", "r_eye")),
    ("glasses", "#56B4E9", ("eye_g",)),
    ("ears", "#C98F8F", ("l_ear", "r_ear")),
    ("lips", "#D55E00", ("u_lip", "l_lip")),
    ("mouth", "#7A1F1F", ("mouth",)),
    ("hair", "#6B5B95", ("hair",)),
    ("hat", "#009E73", ("hat",)),
    ("jewellery", "#F0E442", ("ear_r", "neck_l")),
    ("neck", "#B8B08D", ("neck",)),
    ("clothes", "#9AA5B1", ("cloth",)),
)
_ROW = 0.2  # inches
_PICTURE = 2.6
_COLUMN = 3.3
# Where a row's label ends, its bar ends and its number ends, as shares of a column.
_BAR, _BAR_END = 0.48, 0.84


@dataclass(frozen=True)
class _Bar:
    # The name of the closed question that it answers.
    question: str
    label: str
    value: float
    chosen: bool


@dataclass(frozen=True)
class _Block:
    """Bars under one heading."""

    title: str
    bars: tuple[_Bar, ...]
    note: str = ""

    @property
    def rows(self) -> int:
        """Rows of a column that it takes: a heading, the bars, a gap."""
        return len(self.bars) + 2


def part_map(mask: UInt8[Array, "y x"]) -> tuple[UInt8[Array, "y x 3"], list[str]]:
    """Returns the map in the parts' colours and the names of the parts that occur, background left out."""
    colours = np.zeros((len(CLASSES), 3), np.uint8)
    for _, colour, classes in PARTS:
        rgb = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
        for name in classes:
            colours[CLASSES.index(name)] = rgb
    present = {CLASSES[i] for i in np.unique(mask)}
    return colours[mask], [name for name, _, classes in PARTS[1:] if present & set(classes)]


def _bar(answer: Answer, option: int, label: str = "") -> _Bar:
    question = answer.question
    value = float(answer.probabilities[option])
    return _Bar(question.name, label or question.options[option], value, option == answer.chosen)


def _choice_block(answer: Answer, most: int = 5) -> _Block:
    family, count = answer.question.family, len(answer.probabilities)
    if family == "age_years":
        # Twenty small bars say less than the range around the best one.
        first = min(max(answer.chosen - most // 2, 0), count - most)
        bars = tuple(_bar(answer, i) for i in range(first, first + most))
        return _Block("Age in years", bars, f"about {answer.years:.0f}")
    order: Sequence[int] = range(count)
    if family != "age_group":
        order = sorted(order, key=lambda i: -answer.probabilities[i])[:most]
    titles = {"age_group": "Age group", "race": "Race as annotators name it"}
    return _Block(titles.get(family, family.capitalize()), tuple(_bar(answer, i) for i in order))


def blocks(answers: Sequence[Answer]) -> list[_Block]:
    """Groups answers under headings: choices first, then attributes by heading.

    Where the gender is a choice, the attribute "Male" says nothing more and is left out.
    """
    found = [_choice_block(a) for a in answers if not a.question.is_binary]
    said = {label for a in answers if not a.question.is_binary for label in a.question.labels}
    attributes = [a for a in answers if a.question.is_binary and a.question.labels[0] not in said]
    for heading in HEADINGS:
        under = [a for a in attributes if heading_of(a.question) == heading]
        if under:
            found.append(_Block(heading, tuple(_bar(a, 0, readable(a.question.subject)) for a in under)))
    return found


def _fill_columns(found: list[_Block], columns: int) -> list[list[_Block]]:
    """Spreads blocks over columns in order, with the smallest possible tallest column."""
    for limit in itertools.count(max(block.rows for block in found)):
        filled: list[list[_Block]] = [[]]
        for block in found:
            if filled[-1] and sum(b.rows for b in filled[-1]) + block.rows > limit:
                filled.append([])
            filled[-1].append(block)
        if len(filled) <= columns:
            return filled
    raise AssertionError("a column takes any number of rows")


def _draw_column(axes: Axes, column: list[_Block], rows: float) -> None:
    """Draws blocks below each other; `rows` rows fill the axes."""
    axes.set(xlim=(0, 1), ylim=(rows - 0.5, -0.5))
    axes.axis("off")
    heading = 0
    for block in column:
        axes.text(0, heading, block.title, va="center", weight="bold", fontsize=9)
        axes.text(1, heading, block.note, va="center", ha="right", fontsize=8, color=style.FAINT)
        for y, bar in enumerate(block.bars, heading + 1):
            strength: dict[str, Any] = {"color": style.INK, "weight": "bold"} if bar.chosen else {"color": style.FAINT}
            axes.text(0, y, bar.label, va="center", fontsize=8, **strength)
            axes.barh(y, _BAR_END - _BAR, left=_BAR, height=0.55, color=style.TRACK)
            colour = style.BLUE if bar.chosen else style.SKY
            axes.barh(y, (_BAR_END - _BAR) * bar.value, left=_BAR, height=0.55, color=colour)
            text = f"{100 * bar.value:.0f} %" if bar.value >= 0.005 else "<1 %"
            axes.text(1, y, text, va="center", ha="right", fontsize=8, **strength)
        last = heading + len(block.bars)
        axes.plot([(_BAR + _BAR_END) / 2] * 2, [heading + 0.6, last + 0.4], color="white", linewidth=0.8)
        heading += block.rows


def _show(axes: Axes, image: Array, title: str) -> None:
    axes.imshow(image, interpolation="nearest" if len(image) < 200 else "antialiased")
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[], anchor="NW")
    axes.spines[:].set(visible=True, color=style.FAINT, linewidth=0.6)


def ask_figure(
    image: UInt8[Array, "y x 3"],
    mask: UInt8[Array, "y x"] | None,
    answers: Sequence[Answer],
    title: str = "",
    text: str = "",
) -> Figure:
    """Draws a face, its segmentation map and the answers.

    Args:
      image: the square crop, or any picture.
      mask: class indices 0..18 (`faces.masks.CLASSES`), of any size; None leaves the map out.
      answers: yes/no questions become bars of P(yes) under headings, choices become bars of their options.
      title: a line on top: the picture's name, or what was asked.
      text: sentences below it, e.g. the model's free-form answer.
    """
    found = blocks(answers)
    total, pictures = sum(b.rows for b in found), 1 if mask is None else 2
    # Few answers: photo and map side by side. Many: one above the other, and the answers in columns beside them.
    grid = (pictures, 1) if _ROW * total > _PICTURE + 0.5 else (1, pictures)
    room = grid[0] * (_PICTURE + 0.5)
    filled = _fill_columns(found, min(4, int(np.ceil(_ROW * total / room)))) if found else []
    width = grid[1] * (_PICTURE + 0.2) + len(filled) * _COLUMN + 0.3
    # About so many letters an inch at these sizes.
    lines = [*textwrap.wrap(title, int(10 * width)), ""] if title else []
    words = textwrap.wrap(text, int(12.5 * width))
    top = 0.22 * len(lines) + 0.18 * len(words) + 0.35
    rows = max([room / _ROW, *(sum(b.rows for b in column) for column in filled)])
    height = top + _ROW * rows
    with style.styled():
        drawn = style.figure(width, height, layout=None)
        drawn.text(0.1 / width, 1 - 0.05 / height, "\n".join(lines), va="top", fontsize=11, weight="bold")
        drawn.text(0.1 / width, 1 - (0.05 + 0.22 * len(lines)) / height, "\n".join(words), va="top", fontsize=9.5)
        outer = drawn.add_gridspec(
            1, 1 + len(filled), width_ratios=[grid[1] * (_PICTURE + 0.2), *[_COLUMN] * len(filled)],
            left=0.1 / width, right=1 - 0.1 / width, top=1 - top / height, bottom=0.02, wspace=0.06,
        )  # fmt: skip
        shown = outer[0].subgridspec(*grid, hspace=0.3).subplots(squeeze=False).flat
        _show(shown[0], image, "Photo")
        if mask is not None:
            coloured, names = part_map(mask)
            _show(shown[1], coloured, "Face parts")
            colour = {name: c for name, c, _ in PARTS}
            handles = [Patch(facecolor=colour[n], edgecolor=style.FAINT, linewidth=0.4, label=n) for n in names]
            shown[1].legend(
                handles=handles, loc="upper left", ncols=3, bbox_to_anchor=(0, -0.02), borderpad=0, borderaxespad=0,
                handlelength=1, handleheight=0.8, columnspacing=0.8, labelspacing=0.25, handletextpad=0.4,
            )  # fmt: skip
        for at, column in enumerate(filled, 1):
            _draw_column(drawn.add_subplot(outer[at]), column, rows)
    return drawn


def save_answer_card(path: Path | str, reply) -> Path:
    """Draws what the model replied (`inference.answers.Response`) and writes it as PNG, SVG or PDF."""
    text = f"{reply.text} {f'({reply.note})' if reply.note else ''}".strip()
    drawn = ask_figure(reply.image, reply.mask, reply.answers, reply.question, text)
    return style.save(drawn, path)
