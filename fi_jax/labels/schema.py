"""A schema says what the columns of one's own table are: labels, how they are asked, which values mean what, and rules.

It is YAML, so that a person can write it; `fi-jax dataset init` makes a first one. `read_schema` checks all of it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, cast

import yaml

from fi_jax.errors import UserError, did_you_mean, require_choice
from fi_jax.labels import question_bank, tasks
from fi_jax.labels.bins import bin_names
from fi_jax.labels.questions import OWN_CHOICE, OWN_NUMBER, Question, single_choice, yes_no
from fi_jax.labels.registry import VOCABULARY_NAMES, vocabulary
from fi_jax.labels.rules import Rule, excludes, implies
from fi_jax.labels.vocabulary import Group, Label, Vocabulary

TYPES = ("yes/no", "one of", "number", "text", "ignore")
_TOP = ("name", "table", "folders", "images", "picture", "person", "split", "box", "unknown", "labels", "rules")
_LABEL = ("type", "column", "same_as", "question", "also", "prompt", "yes", "no", "options", "bins")
_YES, _NO = ("1", "1.0", "yes", "y", "true", "t"), ("0", "0.0", "-1", "no", "n", "false", "f")
# `same_as: age` of a column of years.
_AGE = "age"
# The questions that it answers.
_YEARS = ("age_group", "age_years")


@dataclass(frozen=True)
class Column:
    """One column of labels: the question about it, and what its values say."""

    name: str
    column: str
    # None for years, which the questions about the age answer.
    question: Question | None
    # Value as it stands in the table (lower case) -> the option that it chooses.
    values: Mapping[str, int] = field(default_factory=dict)
    # Edges of a number's bins; the first and the last bin are open.
    edges: tuple[float, ...] = ()

    def read(self, value: str) -> dict[str, float] | None:
        """What a value says of each label, in [0, 1]; None when it means nothing."""
        if self.question is None:
            return None
        labels = self.question.labels
        if self.edges:
            number = as_number(value)
            if number is None:
                return None
            chosen = sum(number >= edge for edge in self.edges)
        else:
            place = self.values.get(value.strip().lower())
            if place is None:
                return None
            chosen = place
        if self.question.is_binary:
            return {self.question.subject: float(chosen == 0)}
        return {label: float(at == chosen) for at, label in enumerate(labels) if label is not None}


@dataclass(frozen=True)
class TextColumn:
    """One column of free text, which answers an open question: its wordings, the first of them the question itself."""

    column: str
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """A checked schema. Paths are as written, relative to the schema's own folder."""

    name: str
    columns: tuple[Column, ...]
    # The labels that no built-in vocabulary has, their groups, questions and rules.
    labels: tuple[Label, ...] = ()
    groups: tuple[Group, ...] = ()
    questions: tuple[Question, ...] = ()
    rules: tuple[Rule, ...] = ()
    texts: tuple[TextColumn, ...] = ()
    table: str = ""
    # In place of a table: a folder whose sub-folders are the values of the one label.
    folders: str = ""
    images: str = ""
    picture: str = "picture"
    person: str = ""
    split: str = ""
    box: tuple[str, ...] = ()
    unknown: frozenset[str] = frozenset()


def as_number(value: str) -> float | None:
    """A finite number in ASCII digits, or None."""
    try:
        number = float(value) if value.isascii() else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class _Loader(yaml.BaseLoader):
    """Takes every value as text (YAML would read `no` as false, and 1_000 as a number) and a name once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise UserError(f"'{key.value}' stands twice, the second time in line {key.start_mark.line + 1}")
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)


@cache
def read_schema(text: str, where: str = "the schema") -> Schema:
    """Reads and checks a schema's YAML.

    Raises:
      UserError: what is wrong, with the place in the schema.
    """
    try:
        found = yaml.load(text, Loader=_Loader)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise UserError(f"{where} is not a schema: it is nested too deep") from None
    top = _fields(found, _TOP, where)
    name = _text(top, "name", where)
    if not name.replace("_", "").replace("-", "").isalnum():
        raise UserError(f"{where}: name '{name}' must be letters, digits, '_' and '-'")
    if name in VOCABULARY_NAMES:
        raise UserError(f"{where}: name '{name}' is that of a vocabulary of fi_jax; choose another")
    if ("table" in top) == ("folders" in top):
        raise UserError(f"{where} needs either 'table' (a file) or 'folders' (a folder with one folder a class)")
    given = _fields(top.get("labels"), None, f"{where}: labels")
    parts = [_label(str(key), value, f"{where}: labels: {key}") for key, value in given.items()]
    columns = tuple(part.column for part in parts if part.column)
    if not columns:
        raise UserError(f"{where}: labels names no column that is a label; every 'type' is ignore")
    if "folders" in top and len(columns) != 1:
        raise UserError(f"{where}: folders give one label, but labels names {len(columns)}")
    own = tuple(label for part in parts for label in part.labels)
    _once((label.name for label in own), f"{where}: label")
    answered = [name for column in columns for name in ((column.question.name,) if column.question else _YEARS)]
    _once(answered, f"{where}: two columns answer the question")
    wordings = [text for part in parts for text in part.wordings()]
    _once(map(str.lower, wordings), f"{where}: two labels have the question")
    known = {label.name for label in own} | {
        label for c in columns if c.question for label in c.question.labels if label
    }
    box = tuple(_words(top, "box", where))
    if len(set(box)) != len(box) or len(box) not in (0, 4):
        raise UserError(f"{where}: box must be four columns: left, top, right, bottom")
    return Schema(
        name,
        columns,
        own,
        tuple(part.group for part in parts if part.group),
        tuple(part.column.question for part in parts if part.labels and part.column and part.column.question),
        tuple(_rule(rule, known, f"{where}: rules: {at}") for at, rule in enumerate(_list(top, "rules", where), 1)),
        tuple(part.text for part in parts if part.text),
        **{key: _text(top, key, where) for key in ("table", "folders", "images", "person", "split") if key in top},
        picture=_text(top, "picture", where) if "picture" in top else "picture",
        box=box,
        unknown=frozenset(one.strip().lower() for one in _words(top, "unknown", where)) | {""},
    )


@dataclass(frozen=True)
class _Part:
    column: Column | None = None
    labels: tuple[Label, ...] = ()
    group: Group | None = None
    text: TextColumn | None = None

    def wordings(self) -> tuple[str, ...]:
        """The texts of the question of one's own that this label adds, if it does."""
        if self.text:
            return self.text.wordings
        question = self.column and self.column.question
        return (question.text, *question.also) if question and question.is_own else ()


def _once(names: Iterable[str], what: str) -> None:
    """Raises `UserError` for a name that stands twice: which of the two holds could not be told."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{what} '{twice[0]}' twice; leave one out, or rename it")


def _label(key: str, given: Any, where: str) -> _Part:
    fields = _fields(given, _LABEL, where)
    kind = _text(fields, "type", where)
    require_choice(f"{where}: type", kind, TYPES)
    if kind == "ignore":
        return _Part()
    column = _text(fields, "column", where) if "column" in fields else key
    if "same_as" in fields:
        return _Part(_built_in(key, column, _text(fields, "same_as", where), kind, fields, where))
    if key in _built_in_labels() or question_bank.is_built_in(key):
        raise UserError(
            f"{where}: '{key}' is a label or question that fi_jax has; say 'same_as: {key}', or give it another name "
            f"and 'column: {key}'"
        )
    text = _text(fields, "question", where)
    also = tuple(one.strip() for one in _words(fields, "also", where))
    if kind == "text":
        return _Part(text=TextColumn(column, (text, *also)))
    if kind == "yes/no":
        question = replace(yes_no(key, text), also=also, is_own=True)
        label = Label(key, _text(fields, "prompt", where))
        return _Part(Column(key, column, question, _yes_and_no(fields, where)), (label,))
    if kind == "number":
        found = [as_number(edge) for edge in _words(fields, "bins", where)]
        edges = tuple(edge for edge in found if edge is not None and float(f"{edge:g}") == edge)
        if not found or len(edges) != len(found) or sorted(set(edges)) != list(edges):
            raise UserError(
                f"{where}: bins must be one or more numbers in rising order, of 6 digits at most: the edges between bins"
            )
        names = list(bin_names(edges))
        prompts = {name: f"{key.replace('_', ' ').capitalize()}: {name}." for name in names}
        values: dict[str, int] = {}
    else:
        options = _fields(fields.get("options"), None, f"{where}: options")
        prompts = {name: _text(options, name, f"{where}: options") for name in options}
        names, edges = list(prompts), ()
        values = _chosen_by(names, where)
    if not 2 <= len(names) <= 26:
        raise UserError(f"{where}: {len(names)} options; a question takes 2 to 26")
    labels = tuple(Label(f"{key}:{name}", prompts[name]) for name in names)
    group = Group(key, tuple(label.name for label in labels), "exactly_one")
    family = f"{OWN_NUMBER if edges else OWN_CHOICE}{key}"
    question = single_choice(key, family, text, tuple(names), group.labels)
    question = replace(question, also=also, is_own=True)
    return _Part(Column(key, column, question, values, edges), labels, group)


def _built_in(key: str, column: str, name: str, kind: str, fields: Mapping, where: str) -> Column:
    if name == _AGE:
        if kind != "number":
            raise UserError(f"{where}: same_as age needs 'type: number' (years)")
        return Column(key, column, None)
    question = question_bank.question(name)
    if question.is_binary:
        return Column(key, column, question, _yes_and_no(fields, where))
    # Option of ours -> value in the table; the option's own words by default.
    given = _fields(fields.get("options") or {}, question.options, f"{where}: options")
    given = {option: option for option in question.options} | given
    values = _chosen_by([_text(given, option, f"{where}: options") for option in question.options], where)
    return Column(key, column, question, values)


def _chosen_by(values: Sequence[str], where: str) -> dict[str, int]:
    """Which option a value in the table chooses; upper and lower case mean the same."""
    words = [value.strip().lower() for value in values]
    _once(words, f"{where}: options have the value")
    return {word: at for at, word in enumerate(words)}


def _yes_and_no(fields: Mapping, where: str) -> dict[str, int]:
    yes = [one.strip().lower() for one in _words(fields, "yes", where)] or list(_YES)
    no = [one.strip().lower() for one in _words(fields, "no", where)] or list(_NO)
    if both := set(yes) & set(no):
        raise UserError(f"{where}: '{min(both)}' means both yes and no")
    return {value: 0 for value in yes} | {value: 1 for value in no}


@cache
def _built_in_labels() -> frozenset[str]:
    return frozenset(vocabulary("all").names)


def _rule(given: Any, known: set[str], where: str) -> Rule:
    fields = _fields(given, ("implies", "excludes", "source"), where)
    kinds = [kind for kind in ("implies", "excludes") if kind in fields]
    value = fields.get(kinds[0]) if len(kinds) == 1 else None
    premise, others = value if isinstance(value, list) and len(value) == 2 else (None, None)
    others = others if isinstance(others, list) else [others]
    if not all(isinstance(label, str) for label in (premise, *others)):
        raise UserError(f"{where} must be 'implies: [label, [labels]]' or 'excludes: [label, [labels]]'")
    for label in (premise, *others):
        if label not in known:
            raise UserError(f"{where}: '{label}' is no label of the schema{did_you_mean(label, known)}")
    make = implies if kinds == ["implies"] else excludes
    return make(cast(str, premise), others, _text({"source": "the schema"} | fields, "source", where))


def _fields(given: Any, known: tuple[str, ...] | None, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UserError(f"{where} must be a group of 'name: value' lines")
    for key in given:
        if known is not None:
            require_choice(f"{where}: entry", str(key), known)
    return given


def _text(fields: Mapping, key: str, where: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} needs '{key}', some text")
    return value.strip()


def _list(fields: Mapping, key: str, where: str) -> list:
    value = fields.get(key)
    if value in (None, ""):
        return []
    return value if isinstance(value, list) else [value]


def _words(fields: Mapping, key: str, where: str) -> list[str]:
    words = _list(fields, key, where)
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{where}: {key} must be some text, or a list of texts")
    return words


def schema_vocabulary(schema: Schema) -> Vocabulary:
    """The labels of one's own table: those that are new, and the built-in ones that its columns are the same as."""
    labels = {label.name: label for label in vocabulary("all").labels}
    groups = vocabulary("all").groups
    asked = {label for column in schema.columns if column.question for label in column.question.labels if label}
    if any(column.question is None for column in schema.columns):
        asked |= {*tasks.AGE_GROUP.labels, *tasks.AGE_YEARS.labels}
    built_in = tuple(label for name, label in labels.items() if name in asked)
    whole = tuple(group for group in groups if asked.issuperset(group.labels))
    texts = tuple(wording for text in schema.texts for wording in text.wordings)
    return Vocabulary(
        schema.name, built_in + schema.labels, whole + schema.groups, schema.questions, schema.rules, texts
    )


def find_vocabulary(name: str, schemas: tuple[str, ...] = ()) -> Vocabulary:
    """Returns the vocabulary `name`: built-in, one of the `schemas` (their YAML), or several joined by "+".

    Raises:
      UserError: an unknown name, or a label of one's own that two schemas have.
    """
    own = {schema.name: schema for schema in map(read_schema, schemas)}
    parts = []
    for part in name.split("+"):
        require_choice("vocabulary", part, (*VOCABULARY_NAMES, *own))
        parts.append(schema_vocabulary(own[part]) if part in own else vocabulary(part))
    if len(parts) == 1:
        return parts[0]
    new = [label.name for part in parts for label in part.labels if label.name not in vocabulary("all")]
    if twice := {label for label in new if new.count(label) > 1}:
        raise UserError(f"vocabulary '{name}' has the label '{min(twice)}' from two schemas; rename one")
    return Vocabulary(
        name,
        tuple({label.name: label for part in parts for label in part.labels}.values()),
        tuple({group.name: group for part in parts for group in part.groups}.values()),
        tuple(question for part in parts for question in part.questions),
        tuple(rule for part in parts for rule in part.rules),
        tuple(text for part in parts for text in part.open_questions),
    )
