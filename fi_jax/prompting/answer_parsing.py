"""What a generated text answers to a closed question: one of its options, or nothing."""

import re

from fi_jax.labels import tasks
from fi_jax.labels.questions import Question
from fi_jax.prompting.question_matching import load_phrases

_YES = ("yes", "yeah", "yep", "true", "correct")
_NO = ("no", "nope", "false", "incorrect", "not")

# Other words for an option (in lower case).
_SYNONYMS: dict[str, list[str]] = {
    option: words.split("|") for option, words in load_phrases()["option_synonyms"].items()
}
_DECADES = {word: 10 * n for n, word in enumerate(load_phrases()["words"]["decades"].split("|"), 2)}
_NEGATION = r"(?:\bnot|\bno|\bnever|\bwithout|n't|\bneither|\bnor)\s+(?:(?:a|an|the|very|really)\s+)?"


def parse_answer(question: Question, text: str) -> int | None:
    """Returns the index of the option that `text` answers, or None when it answers none, or several.

    Understands the answer itself ("Yes", "B", "(b)", "The answer is B."), the option's words ("a woman",
    "East Asian") and, for ages, a number of years or a decade ("in her thirties").
    """
    text = " ".join(text.strip().split())
    if question.is_binary:
        return _parse_yes_no(text)
    for parse in (_parse_letter, _parse_words, _parse_age):
        index = parse(question, text)
        if index is not None:
            return index
    return None


def _parse_yes_no(text: str) -> int | None:
    words = re.findall(r"[a-z']+", text.lower())
    if words and words[0] in _YES + _NO[:-1]:
        return int(words[0] in _NO)
    said_yes = any(word in _YES for word in words)
    said_no = any(word in _NO or word.endswith("n't") for word in words)
    if said_yes == said_no:
        return None
    return int(said_no)


def _parse_letter(question: Question, text: str) -> int | None:
    letters = "".join(question.answers)
    # A letter by itself: at the start and followed by punctuation or nothing, in brackets, or "answer is B".
    for pattern in (
        rf"^\(?([{letters}])(?:[).:,;]|$)",
        rf"\(([{letters}])\)",
        rf"(?:answer|option|choice)(?: is|:)?\s*\(?([{letters}])\b(?! \w)",
    ):
        found = re.search(pattern, text, re.IGNORECASE)
        if found:
            return question.answers.index(found.group(1).upper())
    # "B female": the letter and its own option. "A female" is an article before another option.
    found = re.match(rf"([{letters}]) (.+)", text)
    if found:
        index = question.answers.index(found.group(1))
        option = re.escape(question.options[index])
        if re.match(rf"{option}(?!\w)", found.group(2), re.IGNORECASE):
            return index
    return None


def _parse_words(question: Question, text: str) -> int | None:
    lowered = re.sub(r"(\d)\s*(?:to|–|—|-)\s*(\d)", r"\1-\2", text.lower())
    phrases = [
        (phrase, index)
        for index, option in enumerate(question.options)
        for phrase in (option.lower(), *_SYNONYMS.get(option.lower(), ()))
    ]
    found = set()
    # Longest first, and what is found is blanked out: "East Asian" is not also "Asian".
    for phrase, index in sorted(phrases, key=lambda pair: -len(pair[0])):
        bounded = rf"(?<![\w-]){re.escape(phrase)}(?![\w-])"
        lowered = re.sub(_NEGATION + bounded, " ", lowered)
        if re.search(bounded, lowered):
            found.add(index)
            lowered = re.sub(bounded, " ", lowered)
    return found.pop() if len(found) == 1 else None


def _parse_age(question: Question, text: str) -> int | None:
    if question.family not in ("age_group", "age_years"):
        return None
    numbers = re.findall(r"\d+(?:\.\d+)?", text)
    decades = [start for word, start in _DECADES.items() if word in text.lower()]
    if len(numbers) == 1:
        age = float(numbers[0])
    elif not numbers and len(decades) == 1 and question.family == "age_group":
        age = float(decades[0])
    else:
        return None
    if question.family == "age_group":
        return question.labels.index(tasks.age_group_of(age))
    return min(int(age // 5), len(question.options) - 1)
