"""The report's cards: one face with one question, of mistakes, of differences between models, and of broken rules."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fi_jax.evaluation.figures.compare import is_right
from fi_jax.evaluation.figures.summary import headline_text
from fi_jax.evaluation.predictions import Prediction
from fi_jax.evaluation.report.gather import Evaluation, Flips
from fi_jax.evaluation.report.rows import who
from fi_jax.labels.question_bank import question

_THUMBNAIL = 112

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
    # (whose, answer, chance in percent or None, right)
    answers: tuple[tuple[str, str, int | None, bool | None], ...]
    groups: tuple[tuple[str, str], ...]
    picture: str | None


class Budget:
    """Bytes that may still be embedded, and how many things were refused for want of them."""

    def __init__(self, most: int):
        self.left, self.refused = most, 0

    def take(self, size: int) -> bool:
        """Takes `size` bytes, or returns False and takes none."""
        if size > self.left:
            self.refused += 1
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


def _words(prediction: Prediction, value) -> str:
    if value is None:
        return "could not be read"
    return f"{value:.0f} years" if isinstance(value, int | float) else str(value)


def _question_text(prediction: Prediction) -> str:
    asked = question(prediction.question)
    if asked.is_binary:
        return asked.text
    # The options are in the answers; the text before them is enough.
    return asked.text.split("?")[0] + "?"


def _chance(prediction: Prediction) -> int | None:
    chance = prediction.probabilities.get(prediction.answer) if isinstance(prediction.answer, str) else None
    return None if chance is None else round(100 * chance)


def _groups(prediction: Prediction) -> tuple[tuple[str, str], ...]:
    stated = (("gender", prediction.gender), ("race", prediction.race), ("age", prediction.age_group))
    return tuple((name, value) for name, value in stated if value)


def _picture(prediction: Prediction, thumbnails: Thumbnails | None, budget: Budget) -> str | None:
    data = thumbnails(prediction) if thumbnails else None
    return data_uri("image/jpeg", data) if data and budget.take(4 * len(data) // 3) else None


def mistake_cards(evaluation: Evaluation, thumbnails: Thumbnails | None, budget: Budget) -> list[Card]:
    """One card a mistake, worst first within each data set, task, source and setting."""
    return [
        Card(
            p.image, p.dataset, p.task, who(p.source, p.seen), evaluation.name, _question_text(p), _words(p, p.label),
            ((evaluation.name, _words(p, p.answer), _chance(p), False),), _groups(p), _picture(p, thumbnails, budget),
        )
        for found in evaluation.mistakes.values()
        for p in found
    ]  # fmt: skip


def flip_cards(
    flips: dict[tuple, Flips], names: tuple[str, str], thumbnails: Thumbnails | None, budget: Budget
) -> list[Card]:
    """One card a question on which two models differ."""
    cards = []
    for found in flips.values():
        for _, before, after in found.examples:
            answers = tuple(
                (name, _words(p, p.answer), _chance(p), is_right(p)) for name, p in zip(names, (before, after))
            )
            cards.append(
                Card(
                    after.image,
                    after.dataset,
                    after.task,
                    who(after.source, after.seen),
                    " against ".join(names),
                    _question_text(after),
                    _words(after, after.label),
                    answers,
                    _groups(after),
                    _picture(after, thumbnails, budget),
                )  # fmt: skip
            )
    return cards


def rule_blocks(evaluation: Evaluation, thumbnails: Thumbnails | None, budget: Budget) -> list[dict]:
    """One block a data set, source and setting: every rule with its rate, and faces that break some."""
    blocks = []
    for entry in evaluation.summary["entries"]:
        rules = entry["rules"]
        if not rules:
            continue
        examples = []
        for example in rules["examples"][:24]:
            face = evaluation.faces.get(
                (entry["dataset"], entry["source"], entry["setting"] == "fine-tuned", example["image"])
            )
            picture = _picture(face, thumbnails, budget) if face else None
            groups = _groups(face) if face else ()
            examples.append(
                {"image": example["image"], "rules": example["rules"], "picture": picture, "groups": groups}
            )
        by_rule = sorted(rules["by_rule"].items(), key=lambda item: -(item[1]["rate"] or 0))
        blocks.append(
            {
                "model": evaluation.name,
                "dataset": entry["dataset"],
                "who": who(entry["source"], entry["setting"] == "fine-tuned"),
                "headline": headline_text(rules),
                "annotations": rules["annotations"],
                "consistent": rules.get("consistent"),
                "rules": [
                    {"name": name, "why": r["why"], "rate": 100 * (r["rate"] or 0), "faces": r["faces"]}
                    for name, r in by_rule
                ],
                "examples": examples,
            }
        )
    return blocks
