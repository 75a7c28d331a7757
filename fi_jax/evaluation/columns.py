"""Prediction lines gathered into arrays: one block a data set, source and setting, its faces in rows."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from fi_jax.errors import UserError
from fi_jax.evaluation.predictions import GROUPS, Answer, Prediction
from fi_jax.labels.question_bank import question

Array = np.ndarray
# Data set, source, seen, split.
_Key = tuple[str, str, bool, str]


@dataclass(frozen=True)
class Answers:
    """All answers to one question; row `f` is face `f` of the block.

    `target` and `answer` are positions in `options`, −1 where unknown, not asked or unreadable. `probs` is NaN
    where the answer carries none (free-form, or not asked). `years` and `said_years` are truth and answer of
    `age_years` (NaN unknown), which has no target.
    """

    question: str
    task: str
    options: tuple[str, ...]
    probs: Float[Array, "f k"]
    target: Int[Array, "f"]
    answer: Int[Array, "f"]
    asked: Bool[Array, "f"]
    years: Float[Array, "f"]
    said_years: Float[Array, "f"]


@dataclass(frozen=True)
class Block:
    """Everything one source answered about one data set in one setting."""

    dataset: str
    source: str
    seen: bool
    split: str
    images: tuple[str, ...]
    # "gender", "race", "age_group" -> the face's group, None where not stated.
    groups: dict[str, tuple[str | None, ...]]
    answers: dict[str, Answers]

    @property
    def setting(self) -> str:
        """The paper's name: "fine-tuned" on this data set's train split, or "training-free"."""
        return "fine-tuned" if self.seen else "training-free"

    def of_task(self, *tasks: str) -> list[Answers]:
        """The answers to the questions of some task families, in order of first appearance."""
        return [a for a in self.answers.values() if a.task in tasks]


class _Question:
    """Grows one question's columns."""

    def __init__(self, first: Prediction):
        self.name, self.task = first.question, first.task
        known = question(first.question)
        if known.family != first.task:
            raise UserError(f"question '{known.name}' of {first.image} is of task '{known.family}', not '{first.task}'")
        self.options = known.options
        self.places: dict[Answer, int] = {option: i for i, option in enumerate(self.options)}
        self.rows: list[int] = []
        self.probs: list[list[float] | None] = []
        self.target: list[int] = []
        self.answer: list[int] = []
        self.years: list[float] = []
        self.said: list[float] = []

    def place(self, option: Answer, p: Prediction) -> int:
        if option is None:
            return -1
        if option not in self.places:
            raise UserError(
                f"'{option}' is no option of question '{self.name}' ({p.image}); it has {list(self.options)}"
            )
        return self.places[option]

    def add(self, row: int, p: Prediction) -> None:
        self.rows.append(row)
        if p.probabilities:
            values = [0.0] * len(self.options)
            for option, value in p.probabilities.items():
                values[self.place(option, p)] = value
            self.probs.append(values)
        else:
            self.probs.append(None)
        numeric = self.task == "age_years"
        self.target.append(-1 if numeric else self.place(p.label, p))
        self.answer.append(-1 if numeric else self.place(p.answer, p))
        self.years.append(float(p.label) if numeric and p.label is not None else np.nan)
        self.said.append(float(p.answer) if numeric and p.answer is not None else np.nan)

    def finish(self, faces: int) -> Answers:
        k = len(self.options)
        rows = np.asarray(self.rows)
        if len(np.unique(rows)) != len(rows):
            raise UserError(
                f"question '{self.name}' is answered twice for one picture; evaluate again into a fresh folder"
            )
        probs = np.full((faces, k), np.nan, np.float32)
        for row, values in zip(self.rows, self.probs):
            if values is not None:
                probs[row] = values

        def column(values: list, fill, dtype) -> np.ndarray:
            out = np.full(faces, fill, dtype)
            out[rows] = values
            return out

        return Answers(
            self.name,
            self.task,
            self.options,
            probs,
            column(self.target, -1, np.int32),
            column(self.answer, -1, np.int32),
            column([True] * len(rows), False, bool),
            column(self.years, np.nan, np.float64),
            column(self.said, np.nan, np.float64),
        )


def gather(predictions: Iterable[Prediction]) -> list[Block]:
    """Gathers a stream of predictions into blocks, in order of first appearance.

    Raises:
      UserError: an unknown question or option, or a question answered twice for one face in one block.
    """
    faces: dict[_Key, dict[str, int]] = {}
    groups: dict[_Key, dict[str, list]] = {}
    questions: dict[_Key, dict[str, _Question]] = {}
    for p in predictions:
        key = (p.dataset, p.source, p.seen, p.split)
        if key not in faces:
            faces[key], groups[key], questions[key] = {}, {name: [] for name in GROUPS}, {}
        if p.image not in faces[key]:
            faces[key][p.image] = len(faces[key])
            for name in GROUPS:
                groups[key][name].append(getattr(p, name))
        if p.question not in questions[key]:
            questions[key][p.question] = _Question(p)
        questions[key][p.question].add(faces[key][p.image], p)
    return [
        Block(
            *key,
            tuple(faces[key]),
            {name: tuple(values) for name, values in groups[key].items()},
            {name: q.finish(len(faces[key])) for name, q in questions[key].items()},
        )
        for key in faces
    ]
