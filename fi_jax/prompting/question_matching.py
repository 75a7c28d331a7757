"""A question in a person's words -> the closed question that answers it, and how much each of its options says yes.

By meaning, never by nearest spelling: every word of the question must have its place in a small grammar (a person, a
verb, a "no", a listed phrase of one label). A question with any other word, or about two things, matches nothing. This
file and its words (`labels/phrases.json`) need the standard library alone, so that exported models carry both.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# `labels.questions.Question`, or anything with its `name`, `family`, `text` and `labels` (and `also`, `is_own`).
ClosedQuestion = Any


@dataclass(frozen=True)
class Match:
    """The closed question that a person's question asks, or from whose answer it is answered.

    Without `weights` the closed question is the person's own. Else the person asked whether `claim` holds, and its
    probability is the sum of the options' probabilities times `weights` (1 for an option that says yes, a share for a
    range of ages that does in part).
    """

    question: Any
    claim: str = ""
    weights: tuple[float, ...] | None = None


# Around the name of a label of one's own: words that say that it is there, and that it is not.
_WEARS = ("wear", "wears", "wearing", "having", "got", "with", "there", "any", "some", "how")
_NO = ("no", "not", "without", "lack", "lacks")
_SPELLINGS = (
    (r"[’‘`´]", "'"),
    (r"\bcan'?t\b|\bcannot\b", "can not"),
    (r"\bwon'?t\b", "will not"),
    (r"\b(is|are|was|were|do|does|did|has|have|had|could|would)n'?t\b", r"\1 not"),
    (r"\b(he|she|it|that|this|there|what|who|how|where)'s\b|\b(he|she|that|what|how)s\b", r"\1\2 is"),
    (r"\b(they|you|we|these)'re\b", r"\1 are"),
    (r"\bgrey", "gray"),
    (r"\bmoustache", "mustache"),
    (r"(\d)\s*\+", r"\1 plus"),
    (r"(\d)\s*[-–—]\s*(\d)", r"\1 to \2"),
)


def plain_words(text: str) -> str:
    """Lower-case words and numbers with one space between them; contractions, hyphens and spellings made one."""
    text = text.lower().replace("_", " ")
    for pattern, plain in _SPELLINGS:
        text = re.sub(pattern, plain, text)
    return " ".join(re.sub(r"[^\w ]", " ", text).split())


@cache
def load_phrases() -> dict[str, Any]:
    """Reads the words: beside this file (an exported model), or in `labels`."""
    here = Path(__file__).parent
    places = here / "phrases.json", here.parent / "labels" / "phrases.json"
    return json.loads(next(place for place in places if place.is_file()).read_text(encoding="utf-8"))


def match_question(text: str, questions: Sequence[ClosedQuestion]) -> Match | None:
    """Finds the closed question among `questions` that `text` asks, and with which polarity; None when it asks none.

    A question's own text or name, or one of the other wordings that it lists, is that question, but for a yes/no question
    about a label that a choice has too: it is answered from the choice in whatever words, so that "Is this person male?"
    and "man or woman?" agree. A text that names the label of a question of one's own asks that one, before any built-in
    meaning of the word. Else every word must be understood; a text with two readings that differ asks none.
    """
    words, own = plain_words(text), None
    for question in questions:
        stem = question.text.partition("?")[0]
        known = (question.text, stem, question.name, question.name.partition(":")[0], *getattr(question, "also", ()))
        if words in map(plain_words, known):
            own = Match(question)
            if not any({question.labels[0]} < set(other.labels) - {None} for other in questions):
                return own
            break
    named = [match for question in questions if (match := _named(words, question)) is not None]
    if named and own is None:
        return named[0] if len(named) == 1 else None
    choice = _choice(words, questions)
    readings = [choice] if choice else list(_readings(words, questions))
    return readings[0] if len({(match.question.name, match.weights) for match in readings}) == 1 else own


def _named(words: str, question: ClosedQuestion) -> Match | None:
    """Whether a text names the label of one's own that `question` asks: its name among words of no content."""
    if not getattr(question, "is_own", False):
        return None
    name, data = plain_words(question.name), load_phrases()["words"]
    found = re.search(rf"\b{re.escape(name)}s?\b", words)
    if found is None:
        return None
    rest = f"{words[: found.start()]} {words[found.end() :]}".split()
    no = [word for word in rest if word in _NO]
    content = {*data["function"].split("|"), *_WEARS, *_NO}
    if not all(word in content for word in rest) or (no and question.labels[-1] is not None):
        return None
    return Match(question, f"no {name}", (0.0, 1.0)) if len(no) % 2 else Match(question)


def is_description(text: str) -> bool:
    """Whether a person asks for a description."""
    patterns, words = _grammar().patterns, plain_words(text)
    texts = words, patterns["opening"].sub("", words + " ").strip()
    return any(patterns["description"].fullmatch(text) for text in texts)


class _Meaning(NamedTuple):
    """A phrase (and the part of the face that it is said of, or "") with its entry in the file."""

    phrase: re.Pattern[str]
    part: re.Pattern[str]
    entry: dict[str, Any]


class _Grammar(NamedTuple):
    """Compiled words. `frames`: by kind, a whole question around any phrase, and the phrases that may stand in it."""

    frames: dict[str, tuple[re.Pattern[str], list[_Meaning]]]
    choices: list[tuple[re.Pattern[str], frozenset[str], dict[str, Any]]]
    ranges: list[tuple[re.Pattern[str], int | None, int | None]]
    patterns: dict[str, re.Pattern[str]]
    numbers: dict[str, int]


@cache
def _grammar() -> _Grammar:
    data = load_phrases()
    words, meanings = dict(data["words"]), data["meanings"]
    numbers = {word: n for n, word in enumerate(words["numbers"].split("|"), 1)}
    for ten, word in enumerate(words["tens"].split("|"), 2):
        numbers |= {word: 10 * ten} | {f"{word} {unit}": 10 * ten + n for unit, n in list(numbers.items())[:9]}
    words["number"] = "|".join([r"\d{1,3}", *sorted(numbers, key=len, reverse=True)])
    words["feeling"] = "|".join(e["be"] for e in meanings if e["labels"][0][0].startswith("expression:"))

    def fill(text: str, **more: str) -> str:
        named = words | more
        while (filled := re.sub(r"\{([a-z_]+)\}", lambda found: f"({named[found[1]]})", text)) != text:
            text = filled
        # Groups are for grouping alone, but for those with a name.
        return re.sub(r"\((?!\?)", "(?:", filled)

    def meanings_of(kind: str) -> list[_Meaning]:
        entries = [(e[kind], "", e) for e in (*meanings, *data["ages"], *data["choices"]) if kind in e]
        states = [(*e["of"], e) for e in meanings if "of" in e]
        if kind == "be":
            ages = (*(words for words, _, _ in data["ranges"]), data["patterns"]["decade"])
            entries += [(said, "", {"range": True}) for said in ages]
            entries.append((data["patterns"]["age"], "", {"family": "age", "who": True}))
        if kind == "have":
            entries += [(rf"({state})( colou?red| shaped)? ({part})", "", e) for part, state, e in states]
        if kind == "of":
            entries = [(state, part, e) for part, state, e in states]
        return [_Meaning(re.compile(fill(phrase)), re.compile(fill(part)), e) for phrase, part, e in entries]

    frames = {}
    for kind, frame in data["frames"].items():
        found = meanings_of(kind)
        phrases = "|".join(dict.fromkeys(m.phrase.pattern for m in found))
        parts = "|".join(dict.fromkeys(m.part.pattern for m in found))
        # Nobody says more than a few such words in a row; without a bound a text of them alone would take seconds.
        bounded = fill(frame, phrases=phrases, parts=parts).replace(" )*", " ){0,4}")
        frames[kind] = re.compile(bounded), found
    function = frozenset(words["function"].split("|"))
    choices = [
        (re.compile(fill(rf"\b({c['keys']})\b")), function | frozenset(c["words"].split("|")), c)
        for c in data["choices"]
    ]
    ranges = [(re.compile(fill(said)), low, high) for said, low, high in data["ranges"]]
    patterns = {name: re.compile(fill(words)) for name, words in data["patterns"].items()}
    return _Grammar(frames, choices, ranges, patterns, numbers)


def _choice(words: str, questions: Sequence[ClosedQuestion]) -> Match | None:
    """A question for one of several ("what is her age"): a key word, the rest function words, and no verb first."""
    grammar = _grammar()
    rest = grammar.patterns["aside"].sub("", grammar.patterns["opening"].sub("", words + " "))
    for keys, allowed, entry in grammar.choices:
        key = keys.search(rest)
        others = f"{rest[: key.start()]} {rest[key.end() :]}".split() if key else ()
        if key and not grammar.patterns["verb_first"].match(rest) and all(word in allowed for word in others):
            question = _of_family(entry["family"], questions)
            return Match(question) if question is not None else None
    return None


def _readings(words: str, questions: Sequence[ClosedQuestion]) -> Iterator[Match]:
    """What the words may mean: one match a phrase that fits."""
    grammar = _grammar()
    for kind, (frame, meanings) in grammar.frames.items():
        found = frame.fullmatch(words + " ")
        # "Is that his hat?" asks whose it is.
        if found is None or (kind in ("have", "wear") and grammar.patterns["whose"].match(words)):
            continue
        groups = found.groupdict()
        negated = sum(value is not None for name, value in groups.items() if name.startswith("no")) % 2 == 1
        phrase, part = groups["phrase"], groups.get("part", "")
        no = ("no " if kind in ("have", "wear") else "not ") if negated else ""
        claim = f"{part} {no}{phrase}".strip()
        for meaning in meanings:
            # "Is it black?" may be about anything, "are there more than two?" about people.
            unclear = ("who" in meaning.entry and not grammar.patterns["who"].search(words)) or (
                "range" in meaning.entry and grammar.patterns["count"].search(words)
            )
            if not unclear and meaning.phrase.fullmatch(phrase) and meaning.part.fullmatch(part):
                match = _answered(meaning.entry, phrase, negated, claim, questions)
                if match is not None:
                    yield match


def _answered(
    entry: dict[str, Any], phrase: str, negated: bool, claim: str, questions: Sequence[ClosedQuestion]
) -> Match | None:
    """Which of `questions` answers what a phrase claims, or None when none does."""
    for names, holds in entry.get("labels", ()):
        labels = set(names.split("+"))
        fits = [q for q in questions if labels <= set(q.labels)]
        if fits:
            # A choice before the yes/no question about one of its labels.
            best = max(fits, key=lambda q: len(set(q.labels) - {None}))
            weights = tuple(float((label in labels) == (holds != negated)) for label in best.labels)
            own = best.labels[-1] is None and weights[0] == 1.0
            return Match(best) if own else Match(best, claim, weights)
    if "labels" in entry and "years" not in entry:
        return None
    question = _of_family(entry.get("family", "age"), questions)
    if question is None or "family" in entry:
        return None if question is None else Match(question)
    shares = [_share(label, *entry.get("years", ()) or _years(phrase)) for label in question.labels]
    return Match(question, claim, tuple(1 - share if negated else share for share in shares))


def _of_family(family: str, questions: Sequence[ClosedQuestion]) -> ClosedQuestion | None:
    families = ("age_years", "age_group") if family == "age" else (family,)
    return next((q for name in families for q in questions if q.family == name), None)


def _years(phrase: str) -> tuple[int, int]:
    """The whole years [first, end) of an age in words: "over 40", "in her late thirties"."""
    grammar = _grammar()
    numbers = [
        grammar.numbers.get(word) or int(word)
        for word in re.findall(rf"\b(?:{'|'.join(sorted(grammar.numbers, key=len, reverse=True))}|\d+)\b", phrase)
    ]
    for pattern, low, high in grammar.ranges:
        if pattern.fullmatch(phrase):
            return 0 if low is None else min(numbers) + low, 999 if high is None else max(numbers) + high
    *_, decade = re.findall(r"[a-z]+ies|\d0", phrase)
    start = grammar.numbers.get(re.sub("ies$", "y", decade)) or int(decade)
    parts = {"early": (0, 4), "mid": (3, 7), "middle": (3, 7), "late": (6, 10)}
    first, end = next((years for part, years in parts.items() if part in phrase.split()), (0, 10))
    return start + first, start + end


def _share(label: str, first: int, end: int) -> float:
    """Which share of the whole years of an age label ("years:40-44", "age:70+") lies in [first, end)."""
    bounds = [int(digits) for digits in re.findall(r"\d+", label.partition(":")[2])]
    low, high = bounds[0], bounds[1] + 1 if len(bounds) > 1 else bounds[0] + 20
    return max(0, min(high, end) - max(low, first)) / (high - low)
