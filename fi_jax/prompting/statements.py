"""What a text about a face states, in whatever common words, and whether closed answers deny it.

A table of wordings and a plain rule of how far a "no" reaches; age and race are left out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fi_jax.labels.question_bank import question

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


def _is(label: str, words: str) -> Wording:
    return Wording(words, {label: True}, {label: False})


_SHAVEN: Stated = {"No_Beard": True, "Goatee": False, "Mustache": False}

_BODY = (
    _is("Male", r"man|boy|male|gentleman|guy|lad"),
    Wording(r"woman|girl|female|lady|gal", {"Male": False}, {"Male": True}),
    _is("Eyeglasses", r"(?:eye|sun)?glasses|spectacles|eyewear|bespectacled"),
    _is("Wearing_Hat", r"hat|cap|beanie|beret|fedora|sombrero"),
    Wording(r"hatless|bare-?headed", {"Wearing_Hat": False}),
    _is("Wearing_Earrings", r"ear-? ?rings?|ear studs?"),
    _is("Wearing_Necklace", r"necklaces?|pendant|chain around (?:the|his|her|their) neck"),
    _is("Wearing_Necktie", r"neck-?tie|bow-? ?tie|(?<!hair )tie"),
    _is("Wearing_Lipstick", r"lipstick"),
    _is(
        "Heavy_Makeup",
        r"(?:heavy|thick|strong|a lot of|lots of) make-?up|heavily made[- ]up|make-?up is (?:heavy|thick|strong)",
    ),
    _is("Goatee", r"goatee|chin beard"),
    _is("Mustache", r"mo?ustached?|mustachioed"),
    _is("5_o_Clock_Shadow", r"stubble|stubbly|(?:five|5) o'clock shadow|unshaven"),
    _is("Sideburns", r"side-?burns?"),
    Wording(r"(?<!chin )beard|bearded", {"No_Beard": False}, {"No_Beard": True}),
    Wording(r"clean[- ]?shaven|beardless", _SHAVEN),
    # Stubble is facial hair and no beard, so its presence states nothing.
    Wording(r"facial hair", {}, _SHAVEN),
    _is("Bald", r"bald|hairless|bald-?headed|shaved head|shaven head"),
    _is("Bangs", r"bangs|fringe"),
    _is("Receding_Hairline", r"receding (?:hairline|hair)|hairline is receding|hair is receding"),
)

_SAID_OF_HAIR = {
    "Black_Hair": r"(?:jet-?)?black|raven",
    "Blond_Hair": r"blonde?|fair|golden|flaxen|platinum",
    "Brown_Hair": r"brown|brunette?|chestnut",
    "Gray_Hair": r"gr[ae]y|gr[ae]ying|silver|white|salt[- ]and[- ]pepper",
    "Straight_Hair": r"straight",
    "Wavy_Hair": r"wavy",
}
_CURLY = r"curly|curled|frizzy"
# What else may stand between such a word and "hair": "brown, shoulder-length hair".
_CUT = r"long|short|thick|thin|light|medium|shoulder|length|and|very|rather"
_BESIDE = "|".join((*_SAID_OF_HAIR.values(), _CURLY, _CUT))
_PERSON = r"man|woman|boy|girl|person|lady|gentleman|guy|child|baby|male|female"


def _hair(words: str, beside: str = _BESIDE) -> str:
    between, before = rf"(?:(?:,? |-)(?:{beside}))*", rf"(?:,? (?:{beside}))*"
    is_so = rf"hair (?:is|looks|appears|that is){before},? (?:{words})"
    return rf"(?:{words}){between} hair|(?:{words})[- ]haired|{is_so}"


_HAIR = (
    *(_is(label, _hair(words)) for label, words in _SAID_OF_HAIR.items()),
    *(
        _is(label, rf"(?:{word}) (?:{_PERSON})|an? (?:{word})(?= who| with| in|[.,;]|$)")
        for label, word in (("Blond_Hair", r"blonde?"), ("Brown_Hair", r"brunette"))
    ),
    Wording(_hair(_CURLY), {"Straight_Hair": False}),
    # But "dark blond" is blond.
    Wording(_hair("dark", rf"straight|wavy|{_CURLY}|{_CUT}"), {"Blond_Hair": False, "Gray_Hair": False}),
)

_LOOKS = r"expression|face|look|mood|demeanou?r"
_FEELINGS = (
    _is("Smiling", r"(?<!non-)smil(?:e|es|ing)|grin|grins|grinning|laugh|laughs|laughing|beaming"),
    Wording(r"unsmiling|non-smiling|frown|frowns|frowning|scowling", {"Smiling": False}),
    _is("expression:angry", r"angry|angrily|anger|furious|enraged"),
    _is("expression:disgust", r"disgust|disgusted|revolted"),
    _is("expression:fear", r"fear|fearful|afraid|scared|frightened|terrified"),
    _is("expression:happy", r"happy|happily|happiness|cheerful|joy|joyful|delighted|glad"),
    _is("expression:sad", r"sad|sadly|sadness|unhappy|sorrowful|gloomy|miserable"),
    _is("expression:surprise", r"surprise|surprised|astonished|amazed|startled|shocked"),
    _is(
        "expression:neutral",
        rf"(?:neutral|blank)(?: facial)? (?:{_LOOKS})|(?:looks?|is|are|{_LOOKS} is) neutral|expressionless",
    ),
)
TABLE = (*_BODY, *_HAIR, *_FEELINGS)

# Read wherever they stand: no "no" before them is about them.
ANYWHERE = (
    Wording(r"he|his|him|himself", {"Male": True}),
    Wording(r"she|her|hers|herself", {"Male": False}),
    Wording(r"(?:no|without|without any) hair(?! (?:on|over|across))", {"Bald": True}),
)

_NO = re.compile(r"\b(?:no|not|never|without|neither|nor|lacks?|lacking|free of|\w+n't)\b(?! (?:only|just|doubt)\b)")
# A "no" reaches to the end of its clause ...
_END = re.compile(
    r"[.;:!?()]|\b(?:and|but|with|who|which|that|while|though|although|yet|he|she|they|has|is|are|wears)\b"
)
# ... and past a comma only in a list that an "or" ends: "no hat, glasses or beard", but "no beard, brown hair".
_OR = re.compile(r"\bn?or\b")


def _denials(said: str) -> Iterator[tuple[int, int]]:
    """Places (start, end) of what stands under a "no"."""
    for no in _NO.finditer(said):
        end = _END.search(said, no.end())
        stop = end.start() if end else len(said)
        listed = [found.end() for found in _OR.finditer(said, no.end(), stop)]
        comma = said.find(",", listed[-1] if listed else no.end(), stop)
        yield no.start(), comma if comma >= 0 else stop


def statements(text: str) -> set[tuple[str, bool]]:
    """Returns every (label, value) that a text states; both values of a label where it contradicts itself."""
    said = " ".join(text.lower().replace("’", "'").split())
    denied = list(_denials(said))
    found: set[tuple[str, bool]] = set()
    for wording in ANYWHERE:
        if re.search(rf"\b(?:{wording.words})\b", said):
            found.update(wording.affirmed.items())
    for wording in TABLE:
        for place in re.finditer(rf"\b(?:{wording.words})\b", said):
            under = any(start <= place.start() < end for start, end in denied)
            found.update((wording.denied if under else wording.affirmed).items())
    return found


def agrees(text: str, probabilities: Mapping[str, Sequence[float]]) -> bool:
    """Whether a description states nothing that the closed answers (question name -> probabilities) deny or leave open."""
    # None: asked about, and not answered surely enough to be stated.
    holds: dict[str, bool | None] = {}
    for name, given in probabilities.items():
        asked, p = question(name), np.asarray(given, float)
        if asked.is_binary:
            # A choice ("gender") overrules the yes/no question about one of its labels ("Male").
            holds.setdefault(name, bool(p[0] >= 0.5) if max(p[0], 1 - p[0]) >= SURE else None)
        else:
            best = int(np.argmax(p)) if p.max() >= SURE_CHOICE else None
            holds |= {label: None if best is None else i == best for i, label in enumerate(asked.labels) if label}
    return all(holds.get(name, value) == value for name, value in statements(text))
