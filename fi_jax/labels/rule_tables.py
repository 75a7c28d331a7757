"""The declared rules of every vocabulary: CelebA's, MAAD-Face's, the tasks', and those that cross tasks.

Only relations that hold by definition or by nature stand here, and only where the annotations, as far as
any exist, bear them out; docs/rules.md gives the measured violation rates. What people may choose (makeup,
jewellery, neckties) is correlated with gender, not determined by it: that is the co-occurrence graph's matter.
"""

from functools import cache

from fi_jax.labels import celeba, maad_face, tasks
from fi_jax.labels.rules import Rule, excludes, implies, restrict
from fi_jax.labels.vocabulary import Group, Vocabulary

_DEFINITION = "by definition of the labels"
_ONE_ANSWER = "definition: the task has one answer"
_PHYSIOLOGY = "physiology"
_VISIBILITY = "what covers a part of the head hides it"

_BEARDS = ("5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns")


def _group_rule(group: Group, source: str) -> Rule:
    return Rule(group.kind, group.labels, source)


# Attributes that CelebA and MAAD-Face share.
ATTRIBUTES: tuple[Rule, ...] = (
    _group_rule(celeba.HAIR_COLOUR, "definition: one colour at a time; not exhaustive (red, dyed, hidden hair)"),
    excludes("No_Beard", ("Goatee", "Mustache", "Sideburns"), "definition: these are kinds of beard"),
    # Gray_Hair and Receding_Hairline are not here: annotators also say "bald" of a head with a gray fringe.
    excludes(
        "Bald",
        ("Black_Hair", "Blond_Hair", "Brown_Hair", "Bangs", "Straight_Hair", "Wavy_Hair"),
        "definition: a bald head has no hair to describe",
    ),
    excludes("Bangs", ("Receding_Hairline",), _VISIBILITY),
    excludes("Wearing_Hat", ("Receding_Hairline",), _VISIBILITY),
    *(implies(beard, ("Male",), _PHYSIOLOGY) for beard in _BEARDS),
)

CELEBA: tuple[Rule, ...] = (_group_rule(celeba.HAIR_SHAPE, "definition: hair is straight or wavy"),)

MAAD_FACE: tuple[Rule, ...] = (
    *(_group_rule(group, _DEFINITION) for group in maad_face.GROUPS if group is not celeba.HAIR_COLOUR),
    excludes("Bangs", ("Fully_Visible_Forehead",), _VISIBILITY),
)

TASKS: tuple[Rule, ...] = (
    _group_rule(tasks.GENDER, _ONE_ANSWER),
    _group_rule(tasks.AGE_GROUP, _ONE_ANSWER),
    _group_rule(tasks.AGE_YEARS, _ONE_ANSWER),
    _group_rule(tasks.EXPRESSION, _ONE_ANSWER),
    *(_group_rule(group, _ONE_ANSWER) for group in tasks.RACE_GROUPS.values()),
)


def _years_and_groups() -> tuple[Rule, ...]:
    """An age within reach of a five-year bin (two-hot: less than five years from its centre) has its group."""
    rules = []
    for name, centre in zip(tasks.AGE_YEARS.labels, tasks.YEAR_CENTRES, strict=True):
        # Ages that round to whole years; the last bin also takes everything above.
        ages = range(max(0, int(centre) - 4), int(centre) + 5)
        groups = dict.fromkeys(tasks.age_group_of(age) for age in ages)
        rules.append(implies(name, groups, "arithmetic: ages less than five years from the bin's centre"))
    return tuple(rules)


_CHILDHOOD = ("age:0-2", "age:3-9")

CROSS_TASK: tuple[Rule, ...] = (
    *_years_and_groups(),
    *(excludes(age, (*_BEARDS, "Gray_Hair", "Receding_Hairline"), _PHYSIOLOGY) for age in _CHILDHOOD),
    *(implies(age, ("No_Beard",), _PHYSIOLOGY) for age in _CHILDHOOD),
    *(implies(age, ("Young",), _DEFINITION) for age in (*_CHILDHOOD, "age:10-19")),
    excludes("Young", ("age:70+",), _DEFINITION),
    excludes("Middle_Aged", (*_CHILDHOOD, "age:10-19"), _DEFINITION),
    excludes("Senior", (*_CHILDHOOD, "age:10-19", "age:20-29", "age:30-39"), _DEFINITION),
    excludes(
        "Smiling",
        ("expression:angry", "expression:disgust", "expression:fear", "expression:sad"),
        "definition: of the basic expressions a smile belongs to happiness (Ekman's FACS, AU 12)",
    ),
    excludes(
        "White", ("race:Black", "race:Asian", "race:Indian", "race:East Asian", "race:Southeast Asian"), _DEFINITION
    ),
    excludes(
        "Black", ("race:White", "race:Asian", "race:Indian", "race:East Asian", "race:Southeast Asian"), _DEFINITION
    ),
    excludes("Asian", ("race:White", "race:Black", "race:Latino_Hispanic"), _DEFINITION),
)

TABLES: dict[str, tuple[Rule, ...]] = {
    "Attributes (CelebA and MAAD-Face)": ATTRIBUTES,
    "CelebA alone": CELEBA,
    "MAAD-Face alone": MAAD_FACE,
    "Single-choice tasks": TASKS,
    "Across tasks": CROSS_TASK,
}

# Measured and left out on purpose: each is correlation, choice or habit of annotators, not logic.
REJECTED: tuple[Rule, ...] = (
    excludes("No_Beard", ("5_o_Clock_Shadow",), "stubble is often annotated as no beard"),
    excludes("Bald", ("Gray_Hair",), "a gray fringe is annotated too"),
    excludes("Bald", ("Receding_Hairline",), "both are annotated of the same heads"),
    excludes("Bald", ("Wearing_Hat",), "a hat hides baldness, but not always"),
    implies("Mouth_Slightly_Open", ("Smiling",), "correlation"),
    implies("Wearing_Necktie", ("Male",), "choice"),
    excludes("Male", ("Wearing_Lipstick", "Heavy_Makeup"), "choice"),
    implies("Heavy_Makeup", ("Wearing_Lipstick",), "correlation"),
    excludes("Young", ("Gray_Hair",), "dyed and early gray hair"),
    implies("Chubby", ("Double_Chin",), "correlation"),
)


@cache
def rules_for(vocabulary: Vocabulary) -> tuple[Rule, ...]:
    """Returns the rules that say something about `vocabulary`, restricted to its labels.

    A group is ruled only where the vocabulary declares it: the races RAF-DB tells apart exclude each other,
    but exhaust its own faces alone.
    """
    declared = {group.labels for group in vocabulary.groups}
    rules = (restrict(rule, vocabulary) for table in TABLES.values() for rule in table)
    built_in = tuple(rule for rule in rules if rule and (rule.premise is not None or rule.labels in declared))
    own = {label for question in vocabulary.questions for label in question.labels}
    groups = (group for group in vocabulary.groups if own.issuperset(group.labels))
    return (
        *built_in,
        *(Rule(group.kind, group.labels, "the question's options exclude each other") for group in groups),
        *vocabulary.rules,
    )
