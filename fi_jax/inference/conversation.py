"""One picture, one question in a person's words -> an answer with its probability, or a sentence."""

import difflib
import re
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from fi_jax.errors import UserError
from fi_jax.faces.map_cache import map_of
from fi_jax.inference.answerer import Answerer
from fi_jax.inference.generation import generate
from fi_jax.knowledge.consistency import decode_consistent
from fi_jax.knowledge.logic import compile_rules
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.questions import Question
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.tasks import expected_age, median_age
from fi_jax.pictures.crop import Box, crop_square
from fi_jax.prompting.descriptions import DESCRIBE_QUESTIONS, describe_answers
from fi_jax.prompting.probabilities import label_probabilities
from fi_jax.prompting.statements import agrees

DESCRIBE = "Describe this face."
# Words that name a choice; the first that occurs decides. Attributes are matched by their own question.
_KEYWORDS = (
    (r"\b(how old|age in years|years old|what age|age)\b", "age_years"),
    (r"\b(race|ethnicity|ethnic)\b", "race"),
    (r"\b(expression|emotion|mood|feeling|feel)\b", "expression"),
    (r"\b(gender|sex|man or (a )?woman|male or female)\b", "gender"),
)


@dataclass(frozen=True)
class Asked:
    """What is wanted of a picture. `text` None and not `everything` asks for a description."""

    text: str | None = None
    everything: bool = False
    race: bool = False
    by_llm: bool = True
    consistent: bool = False
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Answer:
    """One closed answer: probabilities in the order of the question's options."""

    question: Question
    probabilities: tuple[float, ...]
    # The option said; with consistent decoding it may not be the likeliest.
    chosen: int

    @property
    def option(self) -> str:
        """The answer in words."""
        return self.question.options[self.chosen]

    @property
    def probability(self) -> float:
        """Probability of the answer given."""
        return self.probabilities[self.chosen]


@dataclass(frozen=True)
class Reply:
    """What the model says about one face, with what it saw: the crop and its segmentation map."""

    image: UInt8[np.ndarray, "y x 3"]
    mask: UInt8[np.ndarray, "y x"]
    box: Box
    question: str
    answers: tuple[Answer, ...] = ()
    text: str = ""
    age: float | None = None
    source: str = "llm"
    # Options whose answer was changed so that no rule is broken.
    changed: tuple[str, ...] = field(default=())

    def to_text(self) -> str:
        """Lines for a terminal."""
        lines = [self.text] if self.text else []
        if len(self.answers) == 1:
            lines.append(_said(self.answers[0], self.age))
        elif self.answers:
            width = (
                max(len(a.question.text) for a in self.answers if a.question.is_binary)
                if any(a.question.is_binary for a in self.answers)
                else 40
            )
            for answer in self.answers:
                asked = answer.question.text if answer.question.is_binary else answer.question.text.split("?")[0] + "?"
                lines.append(f"{asked:<{width}}  {_said(answer, self.age)}")
        if self.changed:
            lines.append(f"changed so that no rule is broken: {', '.join(self.changed)}")
        return "\n".join(lines)

    def to_json(self, name: str) -> dict:
        """The same as plain values."""
        answers = []
        for a in self.answers:
            entry = {
                "question": a.question.name,
                "text": a.question.text,
                "answer": a.option,
                "probability": round(a.probability, 4),
            }
            entry["probabilities"] = {o: round(p, 4) for o, p in zip(a.question.options, a.probabilities, strict=True)}
            if a.question.family == "age_years" and self.age is not None:
                entry["years"] = round(self.age, 1)
            answers.append(entry)
        found = {
            "image": name,
            "box": [round(v, 1) for v in self.box],
            "question": self.question,
            "source": self.source,
            "answers": answers,
        }
        if self.text:
            found["text"] = self.text
        return found


def _said(answer: Answer, age: float | None) -> str:
    if answer.question.family == "age_years" and age is not None:
        return f"about {age:.0f} years ({answer.option}: {100 * answer.probability:.0f} %)"
    return f"{answer.option} ({100 * answer.probability:.0f} %)"


def match_question(text: str, bank: tuple[Question, ...]) -> Question | None:
    """Finds the closed question that a person's words mean, or None when it is best answered in free form.

    By the question's own text or label name, then nearly the same words, then a word that names a choice.
    """
    words = _normal(text)
    for question in bank:
        stem = question.text if question.is_binary else question.text.split("?")[0]
        if words in (
            _normal(stem),
            _normal(question.text),
            _normal(question.name),
            _normal(question.name.split(":")[0]),
        ):
            return question
    near = {_normal(q.text): q for q in bank if q.is_binary}
    close = difflib.get_close_matches(words, near, n=1, cutoff=0.88)
    if close:
        return near[close[0]]
    if len(words.split()) <= 8:
        for pattern, family in _KEYWORDS:
            if re.search(pattern, words):
                return next((q for q in bank if q.family == family), None)
    return None


def is_description(text: str) -> bool:
    """Whether a person asks for a description."""
    return _normal(text) in map(_normal, DESCRIBE_QUESTIONS)


def _normal(text: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9 ]", " ", text.lower().replace("_", " ")).split())


def converse(answerer: Answerer, image: UInt8[np.ndarray, "y x 3"], box: Box, asked: Asked) -> Reply:
    """Crops, parses and answers. Race is answered when asked for, never volunteered."""
    # A model of stage 1 has no LLM that reads faces: its alignment head answers.
    asked = replace(asked, by_llm=asked.by_llm and answerer.is_instruction_tuned)
    crop = crop_square(image, box, answerer.config.data.image_size)
    mask = map_of(crop, answerer.config.weights.parser)
    bank = questions_for(answerer.vocabulary)
    source = "llm" if asked.by_llm else "head"
    shown = Reply(crop, mask, box, asked.text or DESCRIBE, source=source)
    if asked.everything:
        listed = [q for q in bank if q.family != "race" or asked.race]
        reply = _closed(answerer, shown, listed, asked)
        return reply if asked.text is None else _with_text(answerer, reply, asked, bank)
    return _with_text(answerer, shown, asked, bank)


def _with_text(answerer: Answerer, shown: Reply, asked: Asked, bank: tuple[Question, ...]) -> Reply:
    matched = match_question(asked.text, bank) if asked.text else None
    if matched is not None:
        one = _closed(answerer, shown, [matched], asked)
        if not shown.answers:
            return one
        text = _said(one.answers[0], one.age)
        return Reply(**{**shown.__dict__, "text": text})
    if not answerer.is_instruction_tuned:
        return Reply(**{**shown.__dict__, "text": _without_llm(answerer, shown, asked)})
    text = generate(answerer, shown.image, shown.mask, asked.text or DESCRIBE, asked.max_new_tokens)
    if is_description(asked.text or DESCRIBE):
        text = held_description(answerer, shown.image, shown.mask, text)
    return Reply(**{**shown.__dict__, "text": text})


def held_description(
    answerer: Answerer, image: UInt8[np.ndarray, "y x 3"], mask: UInt8[np.ndarray, "y x"], text: str
) -> str:
    """The LLM's description of a crop, unless its closed answers deny what it says: then one put together from those."""
    shown = Reply(image, mask, (0.0, 0.0, float(image.shape[1]), float(image.shape[0])), DESCRIBE)
    closed = _all_but_race(answerer, shown, Asked())
    return text if agrees(text, closed) else describe_answers(closed)


def _all_but_race(answerer: Answerer, shown: Reply, asked: Asked) -> dict[str, tuple[float, ...]]:
    """Probabilities of what a description may be made of, by the question's name."""
    questions = [q for q in questions_for(answerer.vocabulary) if q.family != "race"]
    return {a.question.name: a.probabilities for a in _closed(answerer, shown, questions, asked).answers}


def _without_llm(answerer: Answerer, shown: Reply, asked: Asked) -> str:
    """A description put together from the head's closed answers; other open questions need the LLM."""
    if asked.text and _normal(asked.text) != _normal(DESCRIBE):
        raise UserError(
            "this model was trained for stage 1 only and answers closed questions (fi-jax ask IMAGE --all shows them); "
            "open questions need a model of stage 2"
        )
    return describe_answers(_all_but_race(answerer, shown, asked))


def _closed(answerer: Answerer, shown: Reply, questions: list[Question], asked: Asked) -> Reply:
    answers = answerer.answer(shown.image[None], shown.mask[None], questions, by_llm=asked.by_llm)
    said = answers.said(asked.by_llm)[0]
    rows = [said[i, : len(q.options)] for i, q in enumerate(questions)]
    likeliest = [int(row.argmax()) for row in rows]
    chosen = _consistent(answerer, questions, said) if asked.consistent else likeliest
    changed = tuple(q.name for q, a, b in zip(questions, likeliest, chosen, strict=True) if a != b)
    age = None
    for question, row in zip(questions, rows, strict=True):
        if question.family == "age_years":
            estimator = median_age if answerer.info.get("age_estimator") == "median" else expected_age
            age = float(estimator(row))
    made = tuple(Answer(q, tuple(float(p) for p in row), c) for q, row, c in zip(questions, rows, chosen, strict=True))
    return Reply(**{**shown.__dict__, "answers": made, "age": age, "changed": changed})


def _consistent(answerer: Answerer, questions: list[Question], said: np.ndarray) -> list[int]:
    """The most probable options that break no rule."""
    vocabulary = answerer.vocabulary
    width = said.shape[1]
    at = np.full((1, len(questions), width), -1, np.int32)
    for i, question in enumerate(questions):
        at[0, i, : len(question.labels)] = [
            -1 if label is None else vocabulary.index(label) for label in question.labels
        ]
    # By their number, not by their probability: one that rounds to zero is asked about all the same.
    counts = np.array([len(question.options) for question in questions])
    tokens = np.where(np.arange(width) < counts[:, None], 0, -1)[None]
    batch = {"option_labels": jnp.asarray(at), "option_tokens": jnp.asarray(tokens)}
    probabilities, scope = label_probabilities(jnp.asarray(said[None]), batch, len(vocabulary))
    hard = decode_consistent(
        np.asarray(probabilities), np.asarray(scope), compile_rules(rules_for(vocabulary), vocabulary)
    )[0]
    chosen = []
    for i, question in enumerate(questions):
        holds = [hard[label] if label >= 0 else None for label in at[0, i, : len(question.labels)]]
        chosen.append(0 if holds[0] else 1) if question.is_binary else chosen.append(
            int(np.argmax([bool(h) for h in holds]))
        )
    return chosen
