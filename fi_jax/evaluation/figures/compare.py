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

_ROW, _TOP, _PICTURE = 0.22, 0.75, 2.4


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
    columns = 1.5 + 1.0 + 1.75 * len(models)
    left = 0.15 if image is None else _PICTURE + 0.4
    width = left + columns + 0.15
    height = _TOP + max(_ROW * len(lines) + 0.35, 0.0 if image is None else _PICTURE + 0.1)
    with style.styled():
        drawn = style.figure(width, height)
        if title:
            drawn.text(0.15 / width, 1 - 0.22 / height, title, weight="bold", fontsize=11, va="center")
        if image is not None:
            axes = drawn.add_axes(
                (0.15 / width, 1 - (_TOP - 0.2 + _PICTURE) / height, _PICTURE / width, _PICTURE / height), anchor="NW"
            )
            axes.imshow(image)
            axes.axis("off")

        def put(x: float, row: float, text: str, **kwargs) -> None:
            drawn.text((left + x) / width, 1 - (_TOP + _ROW * row) / height, text, va="center", fontsize=8.5, **kwargs)

        for x, text in [(0.0, ""), (1.5, "truth"), *((2.5 + 1.75 * k, name) for k, name in enumerate(models))]:
            put(x, -1, text, weight="bold")
        for row, line in enumerate(lines):
            if row % 2 == 0:
                drawn.patches.append(_stripe(drawn, left, columns, row, width, height))
            put(0.05, row, line.question)
            put(1.5, row, line.truth, color=style.FAINT)
            for k, (answer, right) in enumerate(zip(line.answers, line.right)):
                mark, colour = {True: ("✓", style.BLUE), False: ("✗", style.VERMILION), None: ("·", style.FAINT)}[right]
                put(2.5 + 1.75 * k, row, mark, color=colour, weight="bold")
                put(2.68 + 1.75 * k, row, answer, color=colour, weight="bold" if right is False else "normal")
        put(0.05, len(lines) + 0.3, "✓ right   ✗ wrong   · truth unknown", color=style.FAINT)
    return drawn


def _stripe(drawn: Figure, left: float, columns: float, row: int, width: float, height: float):
    from matplotlib.patches import Rectangle

    place = (left / width, 1 - (_TOP + _ROW * (row + 0.5)) / height)
    return Rectangle(place, columns / width, _ROW / height, transform=drawn.transFigure, facecolor="#F3F5F7", zorder=-1)
