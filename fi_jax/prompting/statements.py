"""What a text about a face states, in whatever common words, and whether closed answers deny it.

A table of wordings (`labels/phrases.json`) and a plain rule of how far a "no" reaches; age and race are left out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fi_jax.labels.question_bank import is_built_in, question
from fi_jax.prompting.question_matching import load_phrases

Stated = Mapping[str, bool]

# From these probabilities on a description may state a yes/no answer, and a choice. A choice stands in the first
# words of a description ("a man"), where a guess does most harm.
SURE, SURE_CHOICE = 0.6, 0.7


class Wording(NamedTuple):
    """Words (a regular expression between word boundaries) and the labels that they state."""

    words: str
    affirmed: Stated
    # What they state after a "no": often nothing ("not curly" need not be straight).
    denied: Stated = {}


_PHRASES = load_phrases()
_SAID_OF_HAIR: dict[str, str] = _PHRASES["said_of_hair"]
_CURLY = r"curly|curled|frizzy"
# What else may stand between such a word and "hair": "brown, shoulder-length hair".
_CUT = r"long|short|thick|thin|light|medium|shoulder|length|and|very|rather"
_BESIDE = "|".join((*_SAID_OF_HAIR.values(), _CURLY, _CUT))


def _hair(words: str, beside: str = _BESIDE) -> str:
    between, before = rf"(?:(?:,? |-)(?:{beside}))*", rf"(?:,? (?:{beside}))*"
    is_so = rf"hair (?:is|looks|appears|that is){before},? (?:{words})"
    return rf"(?:{words}){between} hair|(?:{words})[- ]haired|{is_so}"


def _wording(words: str, affirmed: Stated, denied: Stated | None = None) -> Wording:
    return Wording(
        words, affirmed, {label: not value for label, value in affirmed.items()} if denied is None else denied
    )


TABLE = (
    *(_wording(*row) for row in _PHRASES["statements"]),
    *(_wording(_hair(words), {label: True}) for label, words in _SAID_OF_HAIR.items()),
    Wording(_hair(_CURLY), {"Straight_Hair": False}),
    # But "dark blond" is blond.
    Wording(_hair("dark", rf"straight|wavy|{_CURLY}|{_CUT}"), {"Blond_Hair": False, "Gray_Hair": False}),
)
# Read wherever they stand: no "no" before them is about them.
ANYWHERE = tuple(_wording(*row) for row in _PHRASES["statements_anywhere"])

_NO = re.compile(r"\b(?:no|not|never|without|neither|nor|lacks?|lacking|free of|\w+n't)\b(?! (?:only|just|doubt)\b)")
# A "no" reaches to the end of its clause ...
_END = re.compile(
    r"[.;:!?()]|\b(?:and|but|with|who|which|that|while|though|although|yet|he|she|they|has|is|are|wears)\b"
)
# ... and past a comma only in a list that an "or" ends: "no hat, glasses or beard", but "no beard, brown hair".
_OR = re.compile(r"\bn?or\b")


def _denials(text: str) -> Iterator[tuple[int, int]]:
    """Places (start, end) of what stands under a "no"."""
    for no in _NO.finditer(text):
        end = _END.search(text, no.end())
        stop = end.start() if end else len(text)
        listed = [found.end() for found in _OR.finditer(text, no.end(), stop)]
        comma = text.find(",", listed[-1] if listed else no.end(), stop)
        yield no.start(), comma if comma >= 0 else stop


def statements(text: str) -> set[tuple[str, bool]]:
    """Returns every (label, value) that a text states; both values of a label where it contradicts itself."""
    text = " ".join(text.lower().replace("’", "'").split())
    denied = list(_denials(text))
    found: set[tuple[str, bool]] = set()
    for wording in ANYWHERE:
        if re.search(rf"\b(?:{wording.words})\b", text):
            found.update(wording.affirmed.items())
    for wording in TABLE:
        for place in re.finditer(rf"\b(?:{wording.words})\b", text):
            under = any(start <= place.start() < end for start, end in denied)
            found.update((wording.denied if under else wording.affirmed).items())
    return found


def decided(probabilities: Mapping[str, Sequence[float]]) -> dict[str, bool | None]:
    """What closed answers (question name -> probabilities of its options) say of labels; None where they are not sure.

    A yes/no answer counts from `SURE` on, a choice when its best option has at least `SURE_CHOICE`. A choice ("gender")
    overrules the yes/no question about one of its labels ("Male").
    """
    labels: dict[str, bool | None] = {}
    for name, given in probabilities.items():
        # Of labels of one's own no words are known here: texts neither state nor deny them.
        if not is_built_in(name):
            continue
        about, p = question(name), np.asarray(given, float)
        if about.is_binary:
            labels.setdefault(name, bool(p[0] >= 0.5) if max(p[0], 1 - p[0]) >= SURE else None)
        else:
            best = int(np.argmax(p)) if p.max() >= SURE_CHOICE else None
            labels |= {label: None if best is None else i == best for i, label in enumerate(about.labels) if label}
    return labels


def agrees(text: str, probabilities: Mapping[str, Sequence[float]]) -> bool:
    """Whether a description states nothing that the closed answers deny or leave open."""
    labels = decided(probabilities)
    return all(labels.get(name, value) == value for name, value in statements(text))
