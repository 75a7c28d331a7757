"""The vocabularies by name."""

from functools import cache

from fi_jax.errors import require_choice
from fi_jax.labels import celeba, maad_face, tasks
from fi_jax.labels.vocabulary import Group, Label, Vocabulary

# Building blocks: (labels, groups) of one task.
_GENDER = (tasks.GENDER_LABELS, (tasks.GENDER,))
_AGE_GROUP = (tasks.AGE_GROUP_LABELS, (tasks.AGE_GROUP,))
_AGE_YEARS = (tasks.YEAR_LABELS, (tasks.AGE_YEARS,))
_EXPRESSION = (tasks.EXPRESSION_LABELS, (tasks.EXPRESSION,))
_RACE = {scheme: (tasks.race_labels_of(scheme), (tasks.RACE_GROUPS[scheme],)) for scheme in tasks.RACES}
_CELEBA = (celeba.LABELS, celeba.GROUPS)
_MAAD_FACE = (maad_face.LABELS, maad_face.GROUPS)

_PARTS: dict[str, tuple[tuple[tuple[Label, ...], tuple[Group, ...]], ...]] = {
    # The bundled model's: what the data sets it is trained on annotate.
    "faces": (_CELEBA, _GENDER, _AGE_GROUP, _AGE_YEARS, _RACE["utkface"], _EXPRESSION),
    "celeba": (_CELEBA,),
    "maad_face": (_MAAD_FACE,),
    "fairface": (_GENDER, _AGE_GROUP, _RACE["fairface"]),
    "utkface": (_GENDER, _AGE_GROUP, _AGE_YEARS, _RACE["utkface"]),
    "expw": (_EXPRESSION,),
    "raf_db": (_EXPRESSION, _GENDER, _RACE["raf_db"]),
    # The union. RAF-DB's three races are not a group here: they do not exhaust the others' races.
    "all": (
        _CELEBA,
        _MAAD_FACE,
        _GENDER,
        _AGE_GROUP,
        _AGE_YEARS,
        _RACE["utkface"],
        _RACE["fairface"],
        _EXPRESSION,
    ),
}

VOCABULARY_NAMES: tuple[str, ...] = tuple(_PARTS)


@cache
def vocabulary(name: str) -> Vocabulary:
    """Returns the vocabulary `name`; an unknown name is a `UserError` with a guess.

    Labels and groups that several parts share stand once, where they first occur.
    """
    require_choice("vocabulary", name, VOCABULARY_NAMES)
    labels = {label.name: label for part, _ in reversed(_PARTS[name]) for label in part}
    order = dict.fromkeys(label.name for part, _ in _PARTS[name] for label in part)
    groups = {group.name: group for _, part in _PARTS[name] for group in part}
    return Vocabulary(name, tuple(labels[key] for key in order), tuple(groups.values()))
