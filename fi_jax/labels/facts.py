"""What a person states of a face ("gender" is "female", "age" is 71) -> truth of labels, and what the rules make of it."""

from collections.abc import Iterable, Mapping

from fi_jax.errors import UserError, require_choice
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.questions import Question
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.rules import Rule
from fi_jax.labels.tasks import age_labels
from fi_jax.labels.vocabulary import Vocabulary

AGE = "age"
_TRUTH = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
Statement = str | bool | float


def stated_labels(known: Mapping[str, Statement], vocabulary: Vocabulary) -> dict[str, float]:
    """Returns the truth of every label that follows from statements, in [0, 1]: by definition, or by a rule.

    A statement names a question of `vocabulary` and its answer: a label and yes or no (or a bool), a choice and one of
    its options ("race" stands for whichever races there are), or "age" and a number of years.

    Raises:
      UserError: an unknown question or answer, or statements that contradict each other or a rule.
    """
    questions = _questions(vocabulary)
    names = statement_names(vocabulary)
    found: dict[str, float] = {}
    for name, value in known.items():
        require_choice("--known", name, names)
        made = _of_age(value, vocabulary) if name == AGE else _of_answer(questions[name], value)
        for label, truth in made.items():
            if found.setdefault(label, truth) != truth:
                raise UserError(f"what is stated of '{name}' contradicts another statement about {label}")
    return with_consequences(found, rules_for(vocabulary))


def statement_names(vocabulary: Vocabulary) -> list[str]:
    """What can be stated of a face."""
    return [*_questions(vocabulary), *([AGE] if "age:0-2" in vocabulary or "years:0-4" in vocabulary else [])]


def _questions(vocabulary: Vocabulary) -> dict[str, Question]:
    questions = {question.name: question for question in questions_for(vocabulary)}
    return questions | {question.family: question for question in questions.values() if question.family == "race"}


def _of_age(value: Statement, vocabulary: Vocabulary) -> dict[str, float]:
    try:
        years = float(value)
    except ValueError:
        raise UserError(f"--known {AGE}={value}: give a number of years") from None
    return {label: truth for label, truth in age_labels(years).items() if label in vocabulary}


def _of_answer(question: Question, value: Statement) -> dict[str, float]:
    if question.is_binary:
        word = str(value).lower()
        require_choice(f"--known {question.name}", word, _TRUTH)
        return {question.subject: _TRUTH[word]}
    options = {option.lower(): label for option, label in zip(question.options, question.labels, strict=True)}
    require_choice(f"--known {question.name}", str(value).lower(), options)
    chosen = options[str(value).lower()]
    return {label: float(label == chosen) for label in question.labels if label}


def with_consequences(stated: Mapping[str, float], rules: Iterable[Rule]) -> dict[str, float]:
    """Adds what rules leave no choice about: of a woman, that she has no beard; of a child, that it is young.

    Raises:
      UserError: the statements break a rule, which the message names.
    """
    found, rules = dict(stated), list(rules)
    while True:
        new: dict[str, float] = {}
        for rule in rules:
            for label, truth in _forced(rule, found).items():
                if found.get(label, truth) != truth:
                    raise UserError(f"what is stated breaks the rule: {rule}")
                if label not in found:
                    new[label] = truth
        if not new:
            return found
        found |= new


def _forced(rule: Rule, known: Mapping[str, float]) -> dict[str, float]:
    """What one rule says of labels, given those that are certain. Shares between 0 and 1 force nothing."""
    true = [name for name in rule.labels if known.get(name) == 1.0]
    open_ = [name for name in rule.labels if known.get(name) != 0.0]
    premise = known.get(rule.premise) if rule.premise else None
    if rule.kind == "implies" and rule.premise:
        if not open_:
            return {rule.premise: 0.0}
        return {open_[0]: 1.0} if premise == 1.0 and len(open_) == 1 and not known.get(open_[0]) else {}
    if rule.kind == "excludes" and rule.premise:
        if premise == 1.0:
            return dict.fromkeys(rule.labels, 0.0)
        return {rule.premise: 0.0} if true else {}
    if true:
        return {name: 0.0 for name in rule.labels if name != true[0]}
    if rule.kind == "exactly_one" and len(open_) == 1 and not 0 < known.get(open_[0], 0.0) < 1:
        return {open_[0]: 1.0}
    return {}
