"""Every closed question there is, and which of them a vocabulary asks."""

from collections.abc import Iterable
from functools import cache

from fi_jax.errors import require_choice
from fi_jax.labels import celeba, maad_face, tasks
from fi_jax.labels.bins import edges_of
from fi_jax.labels.questions import OWN_NUMBER, Question, single_choice, yes_no
from fi_jax.labels.vocabulary import Vocabulary

_ATTRIBUTES: dict[str, Question] = {
    name: yes_no(name, text) for name, text in (celeba.QUESTIONS | maad_face.QUESTIONS).items()
}


def _options(labels: tuple[str, ...]) -> tuple[str, ...]:
    """What a person reads: "race:Latino_Hispanic" -> "Latino or Hispanic"."""
    return tuple(name.partition(":")[2].replace("_", " or ") for name in labels)


def _race(scheme: str) -> Question:
    labels = tasks.RACE_GROUPS[scheme].labels
    return single_choice(f"race:{scheme}", "race", "What is this person's race?", _options(labels), labels)


_YEARS = tasks.AGE_YEARS.labels

_CHOICES: dict[str, Question] = {
    question.name: question
    for question in (
        single_choice("gender", "gender", "What is this person's gender?", ("male", "female"), tasks.GENDER.labels),
        _race("utkface"),
        _race("fairface"),
        _race("raf_db"),
        # Short: digits are tokens of their own, and every segment is padded to the longest.
        Question(
            "age_group",
            "age_group",
            "Which age group? A 0-2, B 3-9, C 10-19, by decade to I 70+.",
            _options(tasks.AGE_GROUP.labels),
            tuple("ABCDEFGHI"),
            tasks.AGE_GROUP.labels,
        ),
        # All twenty ranges spelt out would be the longest segment by far; the rule that makes them is as clear.
        Question(
            "age_years",
            "age_years",
            "How many years old? A 0-4, B 5-9, C 10-14, in fives to T 95+.",
            _options(_YEARS),
            tuple(chr(ord("A") + i) for i in range(len(_YEARS))),
            _YEARS,
        ),
        single_choice(
            "expression",
            "expression",
            "What is this person's expression?",
            tasks.EXPRESSIONS,
            tasks.EXPRESSION.labels,
        ),
    )
}


def question(name: str) -> Question:
    """Returns the question `name` (an attribute's label, or "gender", "race:utkface", "age_group", ...)."""
    everything = _ATTRIBUTES | _CHOICES
    require_choice("question", name, everything)
    return everything[name]


def is_built_in(name: str) -> bool:
    """Whether a question of this name is in the bank."""
    return name in _ATTRIBUTES or name in _CHOICES


def answered_question(name: str, family: str, options: tuple[str, ...]) -> Question:
    """Returns the question that was answered: the bank's, or of one's own table what its answers tell."""
    if is_built_in(name):
        return question(name)
    if family == "attribute":
        return yes_no(name, name)
    if family.startswith(OWN_NUMBER):
        edges_of(options)  # Its error is raised here: other options than bins are a damaged file.
    return single_choice(name, family, name, options, tuple(f"{name}:{option}" for option in options))


def answerable(questions: Iterable[Question], vocab: Vocabulary) -> list[Question]:
    """Those of the questions whose labels `vocab` has."""
    return [q for q in questions if all(label is None or label in vocab for label in q.labels)]


@cache
def questions_for(vocab: Vocabulary) -> tuple[Question, ...]:
    """Returns every question whose options all lie in `vocab`: yes/no ones in label order, choices, then its own.

    "Female" has no yes/no question of its own: it is asked through "gender". A choice between some of a
    larger group's labels (RAF-DB's three races within five) is asked only where the larger one is not.
    """
    binary = tuple(_ATTRIBUTES[name] for name in vocab.names if name in _ATTRIBUTES)
    fits = [q for q in _CHOICES.values() if all(label in vocab for label in q.labels if label)]
    choices = tuple(q for q in fits if not any(set(q.labels) < set(other.labels) for other in fits))
    return binary + choices + vocab.questions
