"""Prediction lines gathered into arrays: one block a data set, source and setting, its faces in rows."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from fi_jax.errors import UserError
from fi_jax.evaluation.predictions import GROUPS, Answer, Prediction
from fi_jax.evaluation.titles import Setting, setting_of
from fi_jax.labels.question_bank import answered_question, question
from fi_jax.labels.questions import Question
from fi_jax.labels.vocabulary import Vocabulary

Array = np.ndarray
_SPLIT_ORDER = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Predictions:
    """All predictions of one question; row `f` is face `f` of the block.

    `target` and `answer` are positions in `options`, −1 where unknown, not answered or unreadable. `probs` is NaN
    where the answer carries none (free-form, or not answered). `years` and `predicted_years` are truth and answer of
    `age_years` (NaN unknown), which has no target; of a number of one's own, `years` is the true number.
    """

    question: str
    task: str
    options: tuple[str, ...]
    probs: Float[Array, "f k"]
    target: Int[Array, "f"]
    answer: Int[Array, "f"]
    answered: Bool[Array, "f"]
    years: Float[Array, "f"]
    predicted_years: Float[Array, "f"]

    @property
    def known_target(self) -> Int[Array, "f"]:
        """The target, −1 also where the question was not answered."""
        return np.where(self.answered, self.target, -1)


@dataclass(frozen=True)
class Block:
    """Everything one source answered about one data set in one setting."""

    dataset: str
    source: str
    seen: bool
    # Of several splits, which are judged together, all names: "train+val+test".
    split: str
    images: tuple[str, ...]
    # "gender", "race", "age_group" -> the face's group, None where not stated.
    groups: dict[str, tuple[str | None, ...]]
    predictions: dict[str, Predictions]
    # Of a table of one's own: every label there is and the table's, with its questions and rules.
    vocabulary: Vocabulary | None = None
    # Each face's person, or the face itself where nobody says.
    people: tuple[str, ...] = ()

    @property
    def setting(self) -> Setting:
        """The paper's name: "fine-tuned" on this data set's train split, or "training-free"."""
        return setting_of(self.seen)

    def question(self, name: str) -> Question:
        """The question of this name: the table's own, else the bank's."""
        own = self.vocabulary.questions if self.vocabulary else ()
        return next((q for q in own if q.name == name), None) or question(name)

    def of_task(self, *tasks: str) -> list[Predictions]:
        """The predictions of the questions of some tasks, in order of first appearance."""
        return [column for column in self.predictions.values() if column.task in tasks]


class _Column:
    """Grows one question's predictions."""

    def __init__(self, first: Prediction):
        self.question = answered_question(first.question, first.task, tuple(first.probabilities))
        if self.question.family != first.task:
            raise UserError(
                f"question '{first.question}' of {first.image} is of task '{self.question.family}', not '{first.task}'"
            )
        # Face -> probabilities; face -> (target, answer, years, predicted years).
        self.probs: dict[int, list[float]] = {}
        self.values: dict[int, tuple[int, int, float, float]] = {}

    def option(self, option: Answer, p: Prediction) -> int:
        if option is None:
            return -1
        if option not in self.question.options:
            raise UserError(
                f"'{option}' is no option of question '{p.question}' ({p.image}); it has {list(self.question.options)}"
            )
        return self.question.options.index(option)

    def add(self, face: int, p: Prediction) -> None:
        if face in self.values:
            raise UserError(
                f"question '{p.question}' is answered twice for one picture; evaluate again into a fresh folder"
            )
        if p.probabilities:
            self.probs[face] = [0.0] * len(self.question.options)
            for option, value in p.probabilities.items():
                self.probs[face][self.option(option, p)] = value
        if p.task == "age_years":
            truth, years = (np.nan if value is None else float(value) for value in (p.label, p.answer))
            self.values[face] = (-1, -1, truth, years)
        else:
            number = np.nan if p.number is None else float(p.number)
            self.values[face] = (self.option(p.label, p), self.option(p.answer, p), number, np.nan)

    def finish(self, faces: int) -> Predictions:
        probs = np.full((faces, len(self.question.options)), np.nan, np.float32)
        probs[list(self.probs)] = np.array(list(self.probs.values())).reshape(-1, probs.shape[1])
        answered = np.zeros(faces, bool)
        answered[list(self.values)] = True
        values = np.tile([-1, -1, np.nan, np.nan], (faces, 1))
        values[list(self.values)] = list(self.values.values())
        target, answer = values[:, :2].astype(np.int32).T
        return Predictions(
            self.question.name,
            self.question.family,
            self.question.options,
            probs,
            target,
            answer,
            answered,
            values[:, 2],
            values[:, 3],
        )


def gather(predictions: Iterable[Prediction]) -> list[Block]:
    """Gathers a stream of predictions into blocks, in order of first appearance.

    Raises:
      UserError: an unknown question or option, or a question answered twice for one face in one block.
    """
    faces: dict[tuple[str, str, bool], dict[str, int]] = {}
    groups: dict[tuple, list[tuple]] = {}
    people: dict[tuple, list[str]] = {}
    columns: dict[tuple, dict[str, _Column]] = {}
    splits: dict[tuple, set[str]] = {}
    for p in predictions:
        key = (p.dataset, p.source, p.seen)
        rows = faces.setdefault(key, {})
        splits.setdefault(key, set()).add(p.split)
        if p.image not in rows:
            rows[p.image] = len(rows)
            groups.setdefault(key, []).append(tuple(getattr(p, name) for name in GROUPS))
            people.setdefault(key, []).append(p.person or p.image)
        found = columns.setdefault(key, {})
        if p.question not in found:
            found[p.question] = _Column(p)
        found[p.question].add(rows[p.image], p)
    return [
        Block(
            *key,
            "+".join(sorted(splits[key], key=lambda name: (_SPLIT_ORDER.get(name, 3), name))),
            tuple(rows),
            dict(zip(GROUPS, zip(*groups[key], strict=True), strict=True)),
            {name: column.finish(len(rows)) for name, column in columns[key].items()},
            people=tuple(people[key]),
        )
        for key, rows in faces.items()
    ]
