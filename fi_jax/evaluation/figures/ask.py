"""The answer card: a photo, its segmentation map, and the answers with their probabilities."""

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
from fi_jax.labels.questions import Question
from fi_jax.labels.tasks import expected_age

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
_HEAD = 0.3
_GAP = 0.16
_LABEL, _BAR, _NUMBER = 1.55, 1.15, 0.45
_COLUMN = _LABEL + _BAR + _NUMBER
_PICTURE = 2.5
_MARGIN = 0.15


@dataclass(frozen=True)
class Answered:
    """One question with the probability of each of its options, in the question's order."""

    question: Question
    probabilities: Sequence[float]
    # The option said, where it is not simply the likeliest (consistent decoding).
    chosen: int | None = None


@dataclass(frozen=True)
class _Bar:
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
    def height(self) -> float:
        return _HEAD + _ROW * len(self.bars) + _GAP


def part_map(mask: UInt8[Array, "y x"]) -> tuple[UInt8[Array, "y x 3"], list[str]]:
    """Returns the map in the parts' colours and the names of the parts that occur, background left out."""
    colours = np.zeros((len(CLASSES), 3), np.uint8)
    for _, colour, classes in PARTS:
        rgb = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
        for name in classes:
            colours[CLASSES.index(name)] = rgb
    present = {CLASSES[i] for i in np.unique(mask)}
    return colours[mask], [name for name, _, classes in PARTS[1:] if present & set(classes)]


def _chosen(answered: Answered | Answer) -> int:
    return int(np.argmax(answered.probabilities)) if answered.chosen is None else answered.chosen


def _choice_block(answered: Answered | Answer, age: float | None, most: int = 5) -> _Block:
    question, probs = answered.question, [float(p) for p in answered.probabilities]
    title = {"age_group": "Age group", "race": "Race as annotators name it"}.get(
        question.family, question.family.capitalize()
    )
    top = _chosen(answered)
    if question.family == "age_years":
        # Twenty small bars say less than the range around the best one.
        years = float(expected_age(np.array(probs))) if age is None else age
        first = min(max(top - most // 2, 0), len(probs) - most)
        shown = range(first, first + most)
        return _Block(
            "Age in years", tuple(_Bar(question.options[i], probs[i], i == top) for i in shown), f"about {years:.0f}"
        )
    order: Sequence[int] = range(len(probs))
    if question.family != "age_group":
        order = sorted(order, key=lambda i: -probs[i])[:most]
    return _Block(title, tuple(_Bar(question.options[i], probs[i], i == top) for i in order))


def blocks(answers: Sequence[Answered | Answer], age: float | None = None) -> list[_Block]:
    """Groups answers under headings: choices first, then attributes by heading. `age`: years, else the expected value."""
    found = [_choice_block(a, age) for a in answers if not a.question.is_binary]
    for heading in HEADINGS:
        bars = tuple(
            _Bar(readable(a.question.subject), float(a.probabilities[0]), _chosen(a) == 0)
            for a in answers
            if a.question.is_binary and heading_of(a.question) == heading
        )
        if bars:
            found.append(_Block(heading, bars))
    return found


def _fill_columns(found: list[_Block], columns: int) -> list[list[_Block]]:
    """Spreads blocks over columns in order, with the smallest possible tallest column."""
    heights = [b.height for b in found]
    low, high = max(heights), sum(heights)

    def fill(limit: float) -> list[list[_Block]]:
        filled: list[list[_Block]] = [[]]
        used = 0.0
        for block in found:
            if used + block.height > limit + 1e-9 and filled[-1]:
                filled.append([])
                used = 0.0
            filled[-1].append(block)
            used += block.height
        return filled

    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if len(fill(middle)) <= columns else (middle, high)
    return fill(high)


def _draw_block(drawn: Figure, block: _Block, left: float, top: float) -> None:
    """Draws one block whose upper left corner lies `left`, `top` inches from the figure's upper left corner."""
    width, height = drawn.get_size_inches()
    drawn.text(left / width, 1 - (top + 0.225) / height, block.title, weight="bold", fontsize=9)
    if block.note:
        drawn.text(
            (left + _COLUMN) / width, 1 - (top + 0.225) / height, block.note, ha="right", fontsize=8, color=style.FAINT
        )
    rows = _ROW * len(block.bars)
    bottom = 1 - (top + _HEAD + rows) / height
    axes = drawn.add_axes((left / width, bottom, _COLUMN / width, rows / height))
    axes.set_xlim(0, _COLUMN)
    axes.set_ylim(len(block.bars) - 0.5, -0.5)
    axes.axis("off")
    for y, bar in enumerate(block.bars):
        strength: dict[str, Any] = {"color": style.INK, "weight": "bold"} if bar.chosen else {"color": style.FAINT}
        axes.text(0, y, bar.label, va="center", fontsize=8, **strength)
        axes.barh(y, _BAR, left=_LABEL, height=0.55, color=style.TRACK)
        axes.barh(y, _BAR * bar.value, left=_LABEL, height=0.55, color=style.BLUE if bar.chosen else style.SKY)
        text = f"{100 * bar.value:.0f} %" if bar.value >= 0.005 else "<1 %"
        axes.text(_COLUMN, y, text, va="center", ha="right", fontsize=8, **strength)
    axes.plot([_LABEL + _BAR / 2] * 2, [-0.4, len(block.bars) - 0.6], color="white", linewidth=0.8)


def _show(axes: Axes, image: Array, title: str) -> None:
    axes.imshow(image, interpolation="nearest" if len(image) < 200 else "antialiased")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=style.FAINT, linewidth=0.6)


def ask_figure(
    image: UInt8[Array, "y x 3"],
    mask: UInt8[Array, "y x"] | None,
    answers: Sequence[Answered | Answer],
    title: str = "",
    text: str = "",
    age: float | None = None,
) -> Figure:
    """Draws a face, its segmentation map and the answers.

    Args:
      image: the square crop, or any picture.
      mask: class indices 0..18 (`faces.masks.CLASSES`), of any size; None leaves the map out.
      answers: yes/no questions become bars of P(yes) under headings, choices become bars of their options. Its
        own `Answered`, or anything with the same three fields.
      title: a line on top: the picture's name, or what was asked.
      text: sentences below it, e.g. the model's free-form answer.
      age: years, as read by the model's estimator; the expected value of `age_years` where None.
    """
    found = blocks(answers, age)
    legend = part_map(mask)[1] if mask is not None else []
    # The legend under the map has three names a row.
    legend_height = 0.17 * -(-len(legend) // 3) + 0.1 if legend else 0.0
    picture = _HEAD + _PICTURE
    total = sum(b.height for b in found)
    # Few answers: photo and map side by side. Many: one above the other, and the answers in columns beside them.
    stacked = mask is not None and total > picture + legend_height
    beside = 2 if mask is not None and not stacked else 1
    pictures = (2 if stacked else 1) * picture + legend_height
    columns = int(np.clip(np.ceil(total / pictures), 1, 4))
    filled = _fill_columns(found, columns) if found else []
    left = _MARGIN + beside * (_PICTURE + 0.2) + 0.15
    width = max(left + len(filled) * (0.35 + _COLUMN) - 0.35, left) + _MARGIN
    # About 12 letters an inch at these sizes.
    titles = textwrap.wrap(title, int(11 * (width - 2 * _MARGIN)))
    lines = textwrap.wrap(text, int(13 * (width - 2 * _MARGIN)))
    top = _MARGIN + 0.24 * len(titles) + 0.2 * len(lines) + (0.12 if titles or lines else 0)
    tallest = max((sum(b.height for b in column) for column in filled), default=0.0)
    height = top + max(pictures, tallest) + _MARGIN
    with style.styled():
        drawn = style.figure(width, height)
        for i, line in enumerate(titles):
            drawn.text(_MARGIN / width, 1 - (0.3 + 0.24 * i) / height, line, fontsize=11, weight="bold")
        for i, line in enumerate(lines):
            drawn.text(_MARGIN / width, 1 - (0.3 + 0.24 * len(titles) + 0.2 * i) / height, line, fontsize=9.5)

        def picture_axes(x: float, y: float) -> Axes:
            place = (x / width, 1 - (y + picture) / height, _PICTURE / width, _PICTURE / height)
            return drawn.add_axes(place, anchor="NW")

        _show(picture_axes(_MARGIN, top), image, "Photo")
        if mask is not None:
            x, y = (_MARGIN, top + picture) if stacked else (_MARGIN + _PICTURE + 0.2, top)
            _show(picture_axes(x, y), part_map(mask)[0], "Face parts")
            colour = {name: c for name, c, _ in PARTS}
            handles = [Patch(facecolor=colour[n], edgecolor=style.FAINT, linewidth=0.4, label=n) for n in legend]
            drawn.legend(
                handles=handles, loc="upper left", ncols=3,
                bbox_to_anchor=(x / width, 1 - (y + picture + 0.05) / height),
                borderpad=0, borderaxespad=0, handlelength=1, handleheight=0.8, columnspacing=0.8, labelspacing=0.25,
                handletextpad=0.4,
            )  # fmt: skip
        for i, column in enumerate(filled):
            place = top
            for block in column:
                _draw_block(drawn, block, left + i * (0.35 + _COLUMN), place)
                place += block.height
    return drawn


def save_answer_card(path: Path | str, reply) -> Path:
    """Draws what the model replied (`inference.answers.Response`) and writes it as PNG, SVG or PDF."""
    text = f"{reply.text} {f'({reply.note})' if reply.note else ''}".strip()
    drawn = ask_figure(reply.image, reply.mask, reply.answers, reply.question, text, reply.age)
    return style.save(drawn, path)
