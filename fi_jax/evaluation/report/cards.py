"""The report's cards: one face with one question, of mistakes, of differences between models, and of broken rules."""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fi_jax.evaluation.figures.compare import is_right
from fi_jax.evaluation.figures.summary import headline_text
from fi_jax.evaluation.predictions import Answer, Prediction
from fi_jax.evaluation.report.gather import Evaluation, Flips
from fi_jax.evaluation.results import results_of
from fi_jax.evaluation.titles import GROUP_TITLES, setting_of, who
from fi_jax.labels.question_bank import answered_question

_THUMBNAIL = 112  # pixels
_MOST_EXAMPLES = 24

# (picture's key, where it lies) -> JPEG bytes, or None when it cannot be shown.
Thumbnails = Callable[[Prediction], bytes | None]


@dataclass(frozen=True)
class Card:
    """One face with one question in a gallery."""

    image: str
    dataset: str
    task: str
    who: str
    model: str
    question: str
    truth: str
    # (whose, answer, its probability in percent or None, right)
    answers: tuple[tuple[str, str, int | None, bool | None], ...]
    groups: tuple[tuple[str, str], ...]
    picture: str | None


class Budget:
    """Bytes that may still be embedded, and how many things were refused for want of them."""

    def __init__(self, most: int):
        self.left, self.refused = most, 0

    def take(self, size: int, things: int = 1) -> bool:
        """Takes `size` bytes for some things, or returns False and takes none."""
        if size > self.left:
            self.refused += things
            return False
        self.left -= size
        return True


def thumbnails_from_paths(prediction: Prediction) -> bytes | None:
    """A small JPEG of the picture at the prediction's own `path`, or None when it has none or cannot be read."""
    from PIL import Image, UnidentifiedImageError

    if prediction.path is None or not Path(prediction.path).is_file():
        return None
    try:
        with Image.open(prediction.path) as image:
            image.draft("RGB", (_THUMBNAIL * 2, _THUMBNAIL * 2))
            small = image.convert("RGB")
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    except (UnidentifiedImageError, OSError, ValueError):
        return None
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def data_uri(kind: str, data: bytes) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _words(value: Answer) -> str:
    if value is None:
        return "could not be read"
    return f"{value:.0f} years" if isinstance(value, int | float) else str(value)


def _question_text(prediction: Prediction) -> str:
    asked = answered_question(prediction.question, prediction.task, tuple(prediction.probabilities))
    if asked.is_binary:
        return asked.text
    # The options are in the answers; the text before them is enough.
    return asked.text.split("?")[0] + "?"


def _percent(prediction: Prediction) -> int | None:
    p = prediction.probabilities.get(prediction.answer) if isinstance(prediction.answer, str) else None
    return None if p is None else round(100 * p)


def _groups(prediction: Prediction) -> tuple[tuple[str, str], ...]:
    stated = ((title, getattr(prediction, name)) for name, title in GROUP_TITLES.items())
    return tuple((title, value) for title, value in stated if value)


def _picture(prediction: Prediction, thumbnails: Thumbnails | None, budget: Budget) -> str | None:
    data = thumbnails(prediction) if thumbnails else None
    return data_uri("image/jpeg", data) if data and budget.take(4 * len(data) // 3) else None


def _card(
    face: Prediction,
    model: str,
    answers: Mapping[str, tuple[Prediction, bool | None]],
    thumbnails: Thumbnails | None,
    budget: Budget,
) -> Card:
    """A card about one face and question; `answers` maps whose they are to the prediction and whether it is right."""
    return Card(
        image=face.image,
        dataset=face.dataset,
        task=face.task,
        who=who(face.source, setting_of(face.seen)),
        model=model,
        question=_question_text(face),
        truth=_words(face.label),
        answers=tuple((name, _words(p.answer), _percent(p), right) for name, (p, right) in answers.items()),
        groups=_groups(face),
        picture=_picture(face, thumbnails, budget),
    )


def mistake_cards(evaluation: Evaluation, thumbnails: Thumbnails | None, budget: Budget) -> list[Card]:
    """One card a mistake, worst first within each data set, task, source and setting."""
    name = evaluation.name
    found = (p for mistakes in evaluation.mistakes.values() for p in mistakes)
    return [_card(p, name, {name: (p, False)}, thumbnails, budget) for p in found]


def flip_cards(
    flips: Mapping[tuple, Flips], names: tuple[str, str], thumbnails: Thumbnails | None, budget: Budget
) -> list[Card]:
    """One card a question on which two models differ."""
    return [
        _card(pair[1], " against ".join(names), {n: (p, is_right(p)) for n, p in zip(names, pair)}, thumbnails, budget)
        for found in flips.values()
        for pair in found.examples
    ]


def rule_blocks(evaluation: Evaluation, thumbnails: Thumbnails | None, budget: Budget) -> list[dict]:
    """One block a data set, source and setting: every rule with its rate, and faces that break some."""
    blocks = []
    for result in results_of(evaluation.summary):
        if result.task != "rules":
            continue
        rules = result.values
        examples = []
        for example in rules["examples"][:_MOST_EXAMPLES]:
            key = (result.dataset, result.source, result.setting == "fine-tuned", example["image"])
            face = evaluation.faces.get(key)
            picture = _picture(face, thumbnails, budget) if face else None
            examples.append(example | {"picture": picture, "groups": _groups(face) if face else ()})
        by_rule = sorted(rules["by_rule"].items(), key=lambda item: -(item[1]["rate"] or 0))
        blocks.append(
            {
                "model": evaluation.name,
                "dataset": result.dataset,
                "who": result.who,
                "headline": headline_text(rules),
                "annotations": rules["annotations"],
                "consistent": rules.get("consistent"),
                "rules": [
                    {"name": name, "why": r["why"], "rate": 100 * (r["rate"] or 0), "faces": r["faces"]}
                    for name, r in by_rule
                ],
                "positive_rates": rules.get("positive_rates", {}),
                "examples": examples,
            }
        )
    return blocks
