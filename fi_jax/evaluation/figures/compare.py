"""Two models' answers about the same face side by side, right and wrong marked (the paper's qualitative figure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from fi_jax.errors import UserError
from fi_jax.evaluation.figures import style
from fi_jax.evaluation.figures.headings import readable
from fi_jax.evaluation.predictions import Prediction, years_of
from fi_jax.labels.tasks import age_group_of

_ROW, _PICTURE = 0.22, 2.4  # inches
# Where the truth and the first model's answer stand in the table, and the width of an answer.
_TRUTH, _FIRST, _ANSWER = 1.6, 2.7, 1.8


@dataclass(frozen=True)
class Line:
    """One question with the truth and each model's answer, in words; `right` is None where nobody knows."""

    question: str
    truth: str
    answers: tuple[str, ...]
    right: tuple[bool | None, ...]


def _words(prediction: Prediction, value) -> str:
    if value is None:
        return "unknown" if value is prediction.label else "no answer"
    return f"{value:.0f}" if isinstance(value, int | float) else str(value)


def is_right(prediction: Prediction) -> bool | None:
    """Whether an answer is right; ages in years are when they fall into the true age group. None if unknown."""
    if prediction.label is None:
        return None
    if prediction.task == "age_years":
        if prediction.answer is None:
            return False
        return age_group_of(years_of(prediction.answer)) == age_group_of(years_of(prediction.label))
    return prediction.answer == prediction.label


def lines_of(models: Mapping[str, Sequence[Prediction]], most: int = 24) -> list[Line]:
    """Pairs the models' answers about one face by question, questions on which models differ first."""
    by_question = [{p.question: p for p in predictions} for predictions in models.values()]
    shared = [q for q in by_question[0] if all(q in answers for answers in by_question)]
    if not shared:
        raise UserError("the models were asked no question in common about this picture")
    lines = []
    for name in shared:
        found = [answers[name] for answers in by_question]
        said = []
        for p in found:
            chance = p.probabilities.get(p.answer) if isinstance(p.answer, str) else None
            said.append(_words(p, p.answer) + (f" ({100 * chance:.0f} %)" if chance is not None else ""))
        title = (
            readable(name) if found[0].task == "attribute" else name.partition(":")[0].replace("_", " ").capitalize()
        )
        truth = "unknown" if found[0].label is None else _words(found[0], found[0].label)
        lines.append(Line(title, truth, tuple(said), tuple(is_right(p) for p in found)))
    differ = [line for line in lines if len(set(line.right)) > 1]
    wrong = [line for line in lines if line not in differ and False in line.right]
    rest = [line for line in lines if line not in differ and line not in wrong]
    return (differ + wrong + rest)[:most]


def compare_figure(
    models: Mapping[str, Sequence[Prediction]],
    image: UInt8[np.ndarray, "y x 3"] | None = None,
    title: str = "",
    most: int = 24,
) -> Figure:
    """Draws the answers of two (or more) models about one face.

    Args:
      models: model name → its predictions about the face.
      image: the face, if it may be shown.
      title: a line on top.
      most: rows at most; questions on which the models differ come first.
    """
    lines = lines_of(models, most)
    table = _FIRST + _ANSWER * len(models)
    beside = 0 if image is None else _PICTURE + 0.2
    rows = max(_ROW * (len(lines) + 2), beside) / _ROW
    marks = {True: ("✓", style.BLUE), False: ("✗", style.VERMILION), None: ("·", style.FAINT)}
    with style.styled():
        drawn = style.figure(beside + table + 0.3, rows * _ROW + 0.4, title)
        grid = drawn.add_gridspec(1, 2, width_ratios=(max(beside, 0.01), table))
        if image is not None:
            shown = drawn.add_subplot(grid[0], anchor="NW")
            shown.imshow(image)
            shown.axis("off")
        axes = drawn.add_subplot(grid[1])
        axes.axis("off")
        axes.set(xlim=(0, table), ylim=(rows - 1.5, -1.5))

        def put(x: float, row: float, text: str, color: str = style.INK, **kwargs) -> None:
            axes.text(x, row, text, va="center", fontsize=8.5, color=color, **kwargs)

        for x, text in ((_TRUTH, "truth"), *((_FIRST + _ANSWER * k, name) for k, name in enumerate(models))):
            put(x, -1, text, weight="bold")
        for row, line in enumerate(lines):
            if row % 2 == 0:
                axes.axhspan(row - 0.5, row + 0.5, color="#F3F5F7", zorder=0)
            put(0.05, row, line.question)
            put(_TRUTH, row, line.truth, style.FAINT)
            for k, (answer, right) in enumerate(zip(line.answers, line.right)):
                mark, colour = marks[right]
                put(
                    _FIRST + _ANSWER * k, row, f"{mark} {answer}", colour, weight="bold" if right is False else "normal"
                )
        put(0.05, len(lines), "✓ right   ✗ wrong   · truth unknown", style.FAINT)
    return drawn
