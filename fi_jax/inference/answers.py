"""What is wanted of a picture of a face, and what the model answers: plain values, lines for a terminal, JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from fi_jax.labels.facts import Statement
from fi_jax.labels.questions import Question
from fi_jax.labels.tasks import expected_age
from fi_jax.pictures.crop import Box


@dataclass(frozen=True)
class Request:
    """What is wanted of a picture. `text` None and not `everything` asks for a description."""

    text: str | None = None
    everything: bool = False
    race: bool = False
    by_llm: bool = True
    consistent: bool = False
    max_new_tokens: int = 64
    # What the person states of the face (`labels.facts`).
    known: Mapping[str, Statement] | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to one closed question: probabilities in the order of its options."""

    question: Question
    probabilities: tuple[float, ...]
    # The option answered; with consistent decoding it may not be the likeliest.
    chosen: int
    # Years, by the model's estimator, of a question about the age.
    years: float | None = None
    # What a person asked of it in other words (`prompting.question_matching.Match`): does `claim` hold?
    claim: str = ""
    weights: tuple[float, ...] | None = None

    @classmethod
    def likeliest(cls, question: Question, probabilities: Sequence[float]) -> "Answer":
        """The likeliest option; of a question about the age, the expected value in years too."""
        row = tuple(map(float, probabilities))
        years = float(expected_age(np.array(row))) if question.family == "age_years" else None
        return cls(question, row, int(np.argmax(row)), years)

    @property
    def option(self) -> str:
        """The answer in words."""
        return self.question.options[self.chosen]

    @property
    def probability(self) -> float:
        """Probability of the answer given."""
        return self.probabilities[self.chosen]

    def to_text(self) -> str:
        """The answer with its probability: "Yes (98 %)"."""
        if self.years is not None:
            return f"about {self.years:.0f} years ({self.option}: {100 * self.probability:.0f} %)"
        return f"{self.option} ({100 * self.probability:.0f} %)"

    @property
    def claim_probability(self) -> float | None:
        """Probability that `claim` holds, where one was asked."""
        return None if self.weights is None else float(np.dot(self.weights, self.probabilities))

    def reply(self) -> str:
        """The answer to the person's own question: "No (98 %)" where they asked whether a claim holds."""
        p = self.claim_probability
        return self.to_text() if p is None else f"{'Yes' if p >= 0.5 else 'No'} ({100 * max(p, 1 - p):.0f} %)"

    def note(self) -> str:
        """Which closed question was answered, and with which polarity."""
        note = f"answered: {self.question.stem}"
        if self.claim_probability is not None:
            note += f" {self.to_text()}; {self.claim}: {100 * self.claim_probability:.0f} %"
        if self.question.family == "race":
            note += f" (as annotators label it: {', '.join(self.question.options)})"
        return note

    def to_json(self) -> dict:
        """The closed answer as plain values."""
        options = zip(self.question.options, self.probabilities, strict=True)
        found = {
            "question": self.question.name,
            "text": self.question.text,
            "answer": self.option,
            "probability": round(self.probability, 4),
            "probabilities": {option: round(p, 4) for option, p in options},
        }
        return found if self.years is None else found | {"years": round(self.years, 1)}


@dataclass(frozen=True)
class Response:
    """The answers about one face, with what the model was shown: the crop and its segmentation map."""

    image: UInt8[np.ndarray, "y x 3"]
    mask: UInt8[np.ndarray, "y x"]
    box: Box
    question: str
    answers: tuple[Answer, ...] = ()
    # The reply to the person's question, and what it rests on.
    text: str = ""
    note: str = ""
    # The closed answer that `text` was read from; None for a sentence.
    answer: Answer | None = None
    source: str = "llm"
    # Questions whose answer was changed so that no rule is broken.
    changed: tuple[str, ...] = ()
    # How the face was cut (`faces.framing`).
    frame: Literal["box", "aligned"] = "box"

    @property
    def age(self) -> float | None:
        """Years, where the age was asked."""
        return next((a.years for a in self.answers if a.years is not None), None)

    def to_text(self) -> str:
        """Lines for a terminal."""
        lines = [line for line in (self.text, self.note) if line]
        if self.answers and self.answers != (self.answer,):
            width = max((len(a.question.text) for a in self.answers if a.question.is_binary), default=40)
            lines += [f"{a.question.stem:<{width}}  {a.to_text()}" for a in self.answers]
        if self.changed:
            lines.append(f"changed so that no rule is broken: {', '.join(self.changed)}")
        return "\n".join(lines)

    def to_json(self, name: str) -> dict:
        """The same as plain values; `name` is the picture's."""
        found: dict[str, Any] = {
            "image": name,
            "box": [round(v, 1) for v in self.box],
            "frame": self.frame,
            "question": self.question,
            "source": self.source,
            "answers": [answer.to_json() for answer in self.answers],
        }
        if self.answer is not None:
            p = self.answer.claim_probability
            found["answered"] = {"question": self.answer.question.name, "text": self.answer.question.stem}
            if p is not None:
                found["answered"] |= {"claim": self.answer.claim, "claim_probability": round(p, 4)}
        return found | ({"text": self.text, "note": self.note} if self.text else {})
