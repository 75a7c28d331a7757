"""A table nobody has described -> the first draft of its schema: what each column seems to be, and what is unsure."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fi_jax.data.tables import SPLIT_WORDS
from fi_jax.errors import UserError
from fi_jax.labels.question_bank import is_built_in, question, questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.schema import _NO, _YES, as_number
from fi_jax.pictures.find import PICTURE_SUFFIXES
from fi_jax.tables import Table

_UNKNOWN = ("", "na", "n/a", "nan", "none", "null", "?", "unknown", "unsure", "-")
_PERSONS = ("person", "person_id", "identity", "identity_id", "subject", "subject_id", "id_person")
_SPLITS = ("split", "partition", "set", "fold", "subset", "usage")
_BOXES = (("left", "top", "right", "bottom"), ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"))
# Most options of a choice; more distinct words are free text.
_MOST_OPTIONS = 12
_BINS = 5


@dataclass
class Guess:
    """What the columns seem to be. `labels` holds the schema's entries; `doubts` is said to the person."""

    picture: str
    person: str = ""
    split: str = ""
    box: tuple[str, ...] = ()
    unknown: list[str] = field(default_factory=list)
    labels: dict[str, dict] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)


def guess_columns(table: Table) -> Guess:
    """Looks at names and values.

    Raises:
      UserError: no column holds names of pictures.
    """
    values = {name: [row[name] for row in table.rows] for name in table.columns}
    named = [name for name in table.columns if _share(values[name], _is_picture) > 0.9]
    if not named:
        raise UserError(f"no column holds names of pictures; the columns are {', '.join(table.columns)}")
    guess = Guess(named[0])
    if len(named) > 1:
        guess.doubts.append(f"pictures: '{named[0]}' was taken; '{', '.join(named[1:])}' hold picture names too")
    lower = {name.lower(): name for name in table.columns}
    guess.person = next((lower[name] for name in _PERSONS if name in lower), "")
    guess.split = next((name for name in table.columns if _is_split(name, values[name])), "")
    guess.box = next((tuple(lower[n] for n in box) for box in _BOXES if all(n in lower for n in box)), ())
    taken = {*named, guess.person, guess.split, *guess.box}
    found = {value.lower() for cells in values.values() for value in cells}
    guess.unknown = [word for word in _UNKNOWN if word in found]
    for name in table.columns:
        if name not in taken:
            entry = _label(name, values[name], guess.doubts)
            _add(guess, name, entry)
            if name.lower() in _SPLITS and not guess.split:
                guess.doubts.append(f"'{name}' is no split: it would need two of train, val and test, and nothing else")
    return guess


def _is_split(name: str, cells: Sequence[str]) -> bool:
    """By its words, whatever its name; numbers need the name too, for yes and no are such."""
    words = {cell.lower() for cell in cells}
    return len(words) > 1 and words <= {*SPLIT_WORDS} and (name.lower() in _SPLITS or not words <= {"0", "1", "2"})


def _is_picture(value: str) -> bool:
    return value.lower().endswith(PICTURE_SUFFIXES)


def _share(values: Sequence[str], holds) -> float:
    return sum(map(holds, values)) / max(len(values), 1)


def _add(guess: Guess, name: str, entry: dict) -> None:
    """Adds a column's label. Questions stand once, and names that fi_jax has are not taken for something else."""
    for key in ("same_as", "question"):
        asked = {str(other.get(key)).lower(): column for column, other in guess.labels.items() if key in other}
        if other := asked.get(str(entry.get(key)).lower()):
            guess.doubts.append(f"'{name}' asks what '{other}' asks; ignored")
            entry = {"type": "ignore"}
    if "question" in entry and (is_built_in(name) or name in vocabulary("all").names):
        entry, name = {"column": name, **entry}, f"own_{name}"
    guess.labels[name] = entry


def _label(name: str, cells: Sequence[str], doubts: list[str]) -> dict:
    known = [cell for cell in cells if cell.lower() not in _UNKNOWN]
    counts = Counter(cell.lower() for cell in known)
    words = readable(name)
    same = _same_as(name, counts)
    if not known:
        doubts.append(f"'{name}' has no value; ignored")
        return {"type": "ignore"}
    if len(counts) == 1:
        doubts.append(f"'{name}' is '{known[0]}' throughout; ignored")
        return {"type": "ignore"}
    numbers = [number for number in map(as_number, known) if number is not None]
    if same == "age" and len(numbers) == len(known):
        return {"type": "number", "same_as": "age"}
    if set(counts) <= {*_YES, *_NO}:
        entry = {"type": "yes/no", "yes": sorted(set(counts) & set(_YES)), "no": sorted(set(counts) & set(_NO))}
        if same:
            return {**entry, "same_as": same}
        doubts.append(f"'{name}': the question and the prompt are made of its name; put them into words")
        return {
            **entry,
            "question": f"Is this true of this person: {words}?",
            "prompt": f"A face of which this is true: {words}.",
        }
    if len(numbers) == len(known) and len(counts) > _BINS:
        ordered = sorted(numbers)
        edges = sorted({float(f"{ordered[len(ordered) * i // _BINS]:.3g}") for i in range(1, _BINS)})
        doubts.append(f"'{name}' is a number; its bins are fifths of the values, and it has no unit: put them right")
        return {"type": "number", "question": f"What is the {words}?", "bins": edges}
    if len(counts) <= _MOST_OPTIONS and len(counts) < len(known) / 2:
        options = sorted({cell for cell in known}, key=str.lower)
        options = list({option.lower(): option for option in options}.values())
        if same:
            return {"type": "one of", "same_as": same, "options": _matched(same, options, doubts, name)}
        if len(numbers) == len(known):
            doubts.append(f"'{name}' holds codes ({', '.join(options)}); say in `options` what each means")
        return {
            "type": "one of",
            "question": f"What is the {words}?",
            "options": {o: f"{words.capitalize()}: {o}." for o in options},
        }
    doubts.append(
        f"'{name}' looks like free text or names ({len(counts)} values); ignored: where it describes the face, give it "
        "type text and a question (names of people are never to be learnt)"
    )
    return {"type": "ignore"}


def readable(name: str) -> str:
    """A column's name in words: "wearsGlasses_2" -> "wears glasses 2"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").replace("-", " ").strip().lower()


def _same_as(name: str, counts: Counter) -> str:
    """The built-in question that a column's name states, or ""."""
    plain = name.lower().replace(" ", "_")
    if plain in ("age", "years", "age_years"):
        return "age"
    built_in = {q.name.lower(): q.name for q in questions_for(vocabulary("all")) if q.is_binary}
    if plain in built_in:
        return built_in[plain]
    if plain in ("gender", "sex"):
        return "gender"
    if plain in ("expression", "emotion") and set(counts) <= set(question("expression").options):
        return "expression"
    return ""


def _matched(same: str, options: Sequence[str], doubts: list[str], name: str) -> dict[str, str]:
    """Option of ours -> value in the table, by first letters; what finds none is a doubt."""
    ours = question(same).options
    matched = {}
    for option in ours:
        found = [value for value in options if value.lower() == option or value.lower() == option[0]]
        if same == "gender":
            found = found or [
                v for v in options if v.lower() in {"male": ("man", "m"), "female": ("woman", "f")}[option]
            ]
        if found:
            matched[option] = found[0]
    if len(matched) < min(len(ours), len(options)):
        doubts.append(f"'{name}': say which of {', '.join(options)} means {', '.join(ours)} (options: our word: yours)")
    return matched


def write_schema(guess: Guess, name: str, paths: Mapping[str, str]) -> str:
    """Returns the YAML of a guess, with comments for the person who puts it right.

    `paths`: "table" and "images", or "folders", as the schema has them.
    """
    lines = [
        "# What the columns are. Made by fi-jax dataset init; put it right, then: fi-jax dataset check",
        f"name: {_yaml(name)}",
        "# Paths are relative to this file.",
        *(f"{key}: {_yaml(path)}" for key, path in paths.items()),
        f"picture: {_yaml(guess.picture)}",
        "# Faces of one person never lie in two splits.",
        f"person: {_yaml(guess.person)}" if guess.person else "# person: COLUMN",
        "# train, val or test; without this column faces are split 80/10/10 by a rule.",
        f"split: {_yaml(guess.split)}" if guess.split else "# split: COLUMN",
        "# left, top, right, bottom in pixels; without them the whole picture is the face's crop.",
        f"box: {_yaml(list(guess.box))}" if guess.box else "# box: [left, top, right, bottom]",
        "# Values that say nothing.",
        f"unknown: {_yaml(guess.unknown)}",
        "",
        "# Every column: yes/no, one of, number, text, or ignore. `same_as` names a question that fi_jax has; `also` lists",
        "# other wordings of a question.",
        "labels:",
    ]
    for column, entry in guess.labels.items():
        lines.append(f"  {_yaml(column)}:")
        for key, value in entry.items():
            if isinstance(value, dict):
                lines.append(f"    {key}:")
                lines += [f"      {_yaml(option)}: {_yaml(text)}" for option, text in value.items()]
            else:
                lines.append(f"    {key}: {_yaml(value)}")
    lines += [
        "",
        "# What must hold of every face, as in:  - excludes: [bald, [long_hair]]   or   - implies: [beard, [stubble, full]]",
        "# fi-jax dataset rules proposes some from the table.",
        "rules: []",
    ]
    return "\n".join(lines) + "\n"


def _yaml(value) -> str:
    # JSON is YAML, and quotes what YAML would read otherwise (no, 1, on).
    if (
        isinstance(value, str)
        and re.fullmatch(r"[A-Za-z][A-Za-z0-9_./ -]*", value)
        and value.lower() not in (*_YES, *_NO, "on", "off", "null")
    ):
        return value.strip()
    return json.dumps(value, ensure_ascii=False)


def folders_guess(folder: Path) -> Guess:
    """The guess for a folder with one sub-folder a class."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not 2 <= len(classes) <= 26:
        raise UserError(f"'{folder}' has {len(classes)} sub-folders; folders by class are 2 to 26")
    guess = Guess("picture")
    guess.labels["class"] = {
        "type": "one of",
        "question": "Which class is this face of?",
        "options": {name: f"A face of the class {readable(name)}." for name in classes},
    }
    guess.doubts.append("'class': put the question and the prompts into words")
    return guess
