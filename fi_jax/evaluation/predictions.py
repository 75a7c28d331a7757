"""The `predictions.jsonl` record: one line a face and question, written atomically and read as a stream."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict, cast, get_args

from fi_jax.errors import UserError, require_choice
from fi_jax.files import atomic_path
from fi_jax.labels.question_bank import answered_question, question
from fi_jax.labels.questions import FAMILIES, OWN_CHOICE, OWN_NUMBER, Question
from fi_jax.labels.tasks import age_group_of

Source = Literal["llm", "head", "free"]
# A choice is the option as a person reads it ("Yes", "White", "20-29"); `age_years` is a number; None is unknown.
Answer = str | float | None

SOURCES: tuple[str, ...] = get_args(Source)
GROUPS = ("gender", "race", "age_group")
# Probabilities are rounded to this many digits in the file, so their sum may miss 1 by a few of them.
DIGITS = 5
_SUM_TOLERANCE = 1e-3
_MOST_YEARS, _MOST = 1e6, 1e12


@dataclass(frozen=True)
class Prediction:
    """What a model answered to one question about one face, and what is true.

    `probabilities` maps each option to its probability, in the question's order; it is empty for free-form
    answers. `label` is the truth and `answer` what the model says: an option of the question, or years for
    `age_years`. A `label` of None is unknown and never counted; an `answer` of None could not be read from
    free-form text and counts as wrong.
    """

    # The picture's key within its data set.
    image: str
    dataset: str
    task: str
    # `Question.name`, e.g. "Smiling", "race:utkface".
    question: str
    label: Answer
    answer: Answer
    probabilities: Mapping[str, float] = field(default_factory=dict)
    # Who answers: the LLM by likelihood, the alignment head, or the LLM in words of its own ("free").
    source: Source = "llm"
    # Whether the model was trained on this data set: True is "fine-tuned", False "training-free".
    seen: bool = False
    split: str = "test"
    # True groups of the face, for the breakdown; None where the set does not state them.
    gender: str | None = None
    race: str | None = None
    age_group: str | None = None
    # The true number, where a number of one's own table is asked; `label` and `answer` are then its bins.
    number: float | None = None
    # Who it is by the release's own numbering, where it has one: faces of one person are no two observations.
    person: str | None = None
    # What was generated, for free-form answers.
    text: str | None = None
    # Where the picture lies, when it may be shown in a report; None by default.
    path: str | None = None

    def __post_init__(self):
        if not self.task.startswith((OWN_CHOICE, OWN_NUMBER)):
            require_choice("task", self.task, FAMILIES)
        require_choice("source", self.source, SOURCES)
        where = f"question '{self.question}' of {self.image}"
        options = self.probabilities
        for name, p in options.items():
            if not (isinstance(p, int | float) and 0 <= p <= 1):
                raise UserError(f"{where}: probability of '{name}' is {p}, not in [0, 1]")
        if options and abs(sum(options.values()) - 1) > _SUM_TOLERANCE:
            raise UserError(f"{where}: probabilities sum to {sum(options.values()):.4f}, not 1")
        if self.number is not None and not abs(self.number) < _MOST:
            raise UserError(f"{where}: number {self.number} is not finite")
        for what, value in (("label", self.label), ("answer", self.answer)):
            if value is None:
                continue
            if self.task == "age_years":
                # Compared before `isfinite`, which a whole number of 400 digits would break.
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                if not is_number or not 0 <= value < _MOST_YEARS:
                    raise UserError(f"{where}: {what} '{value}' is not an age in years")
            elif not isinstance(value, str) or (options and value not in options):
                raise UserError(f"{where}: {what} '{value}' is none of {list(options)}")


_FIELDS = tuple(f.name for f in dataclasses.fields(Prediction))
_question = cache(question)
# Of the other fields `Prediction` checks the values.
_TYPES: dict[str, Any] = dict.fromkeys(("image", "dataset", "task", "question", "source", "split"), str)
_TYPES |= dict.fromkeys((*GROUPS, "person", "text", "path"), str | None) | {"seen": bool, "probabilities": dict}
_TYPES["number"] = int | float | None
_TYPE_WORDS = {
    str: "text",
    str | None: "text or null",
    bool: "true or false",
    dict: "an object of option: probability",
    int | float | None: "a number or null",
}
_REQUIRED = ("image", "dataset", "task", "question", "label", "answer", "probabilities")


class Groups(TypedDict):
    """A face's true groups; None where unknown."""

    gender: str | None
    race: str | None
    age_group: str | None


def years_of(answer: str | float) -> float:
    """An answer to `age_years`, which `Prediction` has checked to be a number."""
    return cast(float, answer)


def option_of(answer: str | float) -> str:
    """An answer to any other question, which `Prediction` has checked to be an option."""
    return cast(str, answer)


def true_answer(question: Question, labels: Mapping[str, bool | float], age: float | None = None) -> Answer:
    """Returns the true answer to `question` given a face's known labels (and age in years), or None."""
    if question.family == "age_years":
        return None if age is None else float(age)
    if question.is_binary:
        value = labels.get(question.subject)
        return None if value is None else question.options[0 if value >= 0.5 else 1]
    if question.family == "age_group" and age is not None:
        labels = {age_group_of(age): True}
    for option, label in zip(question.options, question.labels):
        if label is not None and labels.get(label, 0) >= 0.5:
            return option
    # Two classes: "not a man" is an answer as well.
    if len(question.options) == 2 and question.labels[0] in labels:
        return question.options[1]
    return None


def group_fields(labels: Mapping[str, bool | float], age: float | None = None) -> Groups:
    """Returns a face's true groups for the breakdown: `gender`, `race`, `age_group`, each None where unknown.

    Where a set states no age, its own words stand in: MAAD-Face's Young, Middle_Aged, Senior; CelebA's Young or not.
    """

    def first(prefix: str, names: Iterable[str] = ()) -> str | None:
        stated = [name for name, value in labels.items() if value >= 0.5]
        return next((n.removeprefix(prefix) for n in stated if n.startswith(prefix)), None) or next(
            (n for n in names if n in stated), None
        )

    gender = None
    age_group: str | None
    if "Male" in labels or "Female" in labels:
        gender = "male" if labels.get("Male", 1 - labels.get("Female", 0)) >= 0.5 else "female"
    if age is not None:
        age_group = age_group_of(age).removeprefix("age:")
    else:
        age_group = first("age:", ("Young", "Middle_Aged", "Senior"))
        if age_group is None and labels.get("Young", 1) < 0.5 and "Senior" not in labels:
            age_group = "not Young"
    return {"gender": gender, "race": first("race:", ("Asian", "White", "Black")), "age_group": age_group}


def to_line(prediction: Prediction) -> str:
    """Returns one JSON line (no line end); fields that are None and not required are left out."""
    values = {name: getattr(prediction, name) for name in _FIELDS}
    values = {name: value for name, value in values.items() if value is not None or name in _REQUIRED}
    values["probabilities"] = {k: round(float(p), DIGITS) for k, p in prediction.probabilities.items()}
    if isinstance(prediction.answer, float):
        values["answer"] = round(prediction.answer, 2)
    return json.dumps(values, ensure_ascii=False)


def from_line(line: str) -> Prediction:
    """Parses one line; a missing or unknown field, a wrong type, or a value out of range, is a `UserError`."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError("not a JSON object")
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        raise UserError(f"field(s) missing: {', '.join(missing)}")
    for name, value in values.items():
        if name not in _FIELDS:
            require_choice("field", name, _FIELDS)
        if not isinstance(value, _TYPES.get(name, object)):
            raise UserError(f"field '{name}' is {json.dumps(value)[:60]}, not {_TYPE_WORDS[_TYPES[name]]}")
    prediction = Prediction(**values)
    asked = answered_question(prediction.question, prediction.task, tuple(prediction.probabilities))
    if asked.family != prediction.task:
        raise UserError(f"question '{asked.name}' is of task '{asked.family}', not '{prediction.task}'")
    for option in prediction.probabilities:
        if option not in asked.options:
            raise UserError(f"'{option}' is no option of question '{asked.name}'; it has {list(asked.options)}")
    return prediction


def write_predictions(path: Path | str, predictions: Iterable[Prediction]) -> int:
    """Writes predictions as they come; the file appears only when all are written. Returns their number."""
    count = 0
    with atomic_path(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for prediction in predictions:
            file.write(to_line(prediction) + "\n")
            count += 1
    return count


def read_predictions(path: Path | str) -> Iterator[Prediction]:
    """Yields the predictions of a file (or of a folder's `predictions.jsonl`), one line in memory at a time."""
    path = Path(path)
    if path.is_dir():
        path = path / "predictions.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with 'fi-jax evaluate CONFIG --out DIR'")
    # A line of another encoding must not stop the count of lines, which the message names.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                line.encode()
                yield from_line(line)
            except UnicodeEncodeError as error:
                raise UserError(f"{path}, line {number}: not UTF-8; evaluate again") from error
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from error
