"""A question in a person's words -> the closed question that it means."""

import difflib
import re

from fi_jax.labels.questions import Question
from fi_jax.prompting.descriptions import DESCRIBE_QUESTIONS

# Words that name a choice; the first that occurs decides. Attributes are matched by their own question.
_KEYWORDS = (
    (r"\b(how old|age in years|years old|what age|age)\b", "age_years"),
    (r"\b(race|ethnicity|ethnic)\b", "race"),
    (r"\b(expression|emotion|mood|feeling|feel)\b", "expression"),
    (r"\b(gender|sex|man or (a )?woman|male or female)\b", "gender"),
)


def match_question(text: str, bank: tuple[Question, ...]) -> Question | None:
    """Finds the closed question that a person's words mean, or None when it is best answered in free form.

    By the question's own text or label name, then nearly the same words, then a word that names a choice.
    """
    words = _normal(text)
    for question in bank:
        names = (question.stem, question.text, question.name, question.name.split(":")[0])
        if words in map(_normal, names):
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
