"""Free-form answers through the protocols: what was generated is read as one of the options, or as unreadable."""

from fi_jax.evaluation.predictions import Answer
from fi_jax.labels.questions import Question
from fi_jax.labels.tasks import YEAR_CENTRES
from fi_jax.prompting.answer_parsing import parse_answer

# An answer in a sentence; what comes later is rarely the answer.
MAX_NEW_TOKENS = 24


def read_answer(question: Question, text: str) -> Answer:
    """Returns what a generated text answers: an option, years for `age_years`, or None where it cannot be read.

    Years: a number is taken as it stands, a letter or a range as the middle of its five-year bin.
    """
    index = parse_answer(question, text)
    if index is None:
        return None
    if question.family != "age_years":
        return question.options[index]
    years = _number(text)
    return YEAR_CENTRES[index] if years is None else years


def _number(text: str) -> float | None:
    """The age that a text states as a bare number ("She is 34."); None for a range, "95+" or a letter."""
    words = [word.strip(".,;:!?()\"'") for word in text.replace("-year", " year").split()]
    numbers = [word for word in words if word.replace(".", "", 1).isdecimal()]
    return float(numbers[0]) if len(numbers) == 1 and not any(c in text for c in "+–") else None
