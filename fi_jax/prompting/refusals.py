"""Questions that get an honest sentence instead of generated text: what no face shows, names, other languages; or an error."""

import re
from functools import cache

from fi_jax.errors import UserError
from fi_jax.prompting.question_matching import is_description, load_phrases, plain_words

IDENTITY_REFUSAL = "I do not identify people. I can describe the face instead."
LANGUAGE_REFUSAL = "I answer questions in English."
RACE_REFUSAL = "I name race only as annotators of data sets label it; ask what race this person is."
OFF_TOPIC_REFUSAL = "I cannot tell that from this picture: I answer questions about a face."
LONGEST_QUESTION = 1000
UNSURE = "I am not sure enough to answer that in words; ask about one attribute, age, gender or expression."


def checked_question(text: str) -> str:
    """Returns a question on one line; an empty one or one that is too long is a `UserError`."""
    if len(text) > LONGEST_QUESTION:
        raise UserError(f"the question has {len(text)} letters; ask in at most {LONGEST_QUESTION}")
    if not text.strip():
        raise UserError("the question is empty; write a question, or leave it out for a description")
    return " ".join(text.split())


def cannot_tell(reason: str) -> str:
    """Returns the answer to a question about what no face shows."""
    return f"I cannot tell that from this picture: {reason}."


@cache
def _words(name: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{load_phrases()[name]})\b")


def refusal(text: str) -> str | None:
    """Returns the sentence that declines an open question, or None where the LLM may answer it."""
    words = re.sub(r"\b(?:do|would|can|could) you (?:think|say|tell)\b", "", plain_words(text))
    if _is_foreign(text, words):
        return LANGUAGE_REFUSAL
    if is_description(text):
        return None
    # A name: two capitals in a row behind the first word.
    if _words("identity").search(words) or re.search(r"\S\s+[A-Z][a-z]+ [A-Z][a-z]+", text):
        return IDENTITY_REFUSAL
    if _words("races").search(words):
        return RACE_REFUSAL
    for reason, topics in load_phrases()["unseen"]:
        if re.search(rf"\b(?:{topics})\b", words):
            return cannot_tell(reason)
    return None if _words("looks").search(words) else OFF_TOPIC_REFUSAL


def _is_foreign(text: str, words: str) -> bool:
    """Whether a text is in another language: other letters, or more of other languages' small words than of English."""
    letters = [letter for letter in text if letter.isalpha()]
    beyond_latin = sum(ord(letter) > 0x24F for letter in letters)
    english, foreign = (len(_words(name).findall(words)) for name in ("english", "foreign"))
    accented = any(0x7F < ord(letter) <= 0x24F for letter in letters)
    return beyond_latin > len(letters) / 2 or foreign > english or (accented and not english)


def is_refusal(answer: str) -> bool:
    """Whether a generated answer declines, in the words of training."""
    return answer.startswith(cannot_tell("").removesuffix(": ."))


def is_withheld(answer: str) -> bool:
    """Whether a generated answer speaks of who somebody is, or of their race, though the question did not ask that."""
    return answer == IDENTITY_REFUSAL or bool(_words("races").search(plain_words(answer)))
