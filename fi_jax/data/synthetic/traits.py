"""A small causal model that draws the traits of one procedural face, and its labels.

Traits come about as in real faces (gender and age decide about beards, age about gray hair and baldness,
makeup brings lipstick), so that labels co-occur and obey every rule. The odds are rough and ours. The five
classes called race are no more here than palettes of skin and hair tones, there so that code which handles such
labels has something to handle; they say nothing about people.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fi_jax.labels.tasks import EXPRESSIONS, RACES

Beard = Literal["none", "stubble", "mustache", "goatee", "full"]
HairColour = Literal["Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "other"]
HairShape = Literal["straight", "wavy", "cropped"]

_RACES = RACES["utkface"]
_RACE_ODDS = (0.42, 0.19, 0.17, 0.14, 0.08)
_EXPRESSION_ODDS = (0.09, 0.06, 0.06, 0.37, 0.09, 0.09, 0.24)
# Odds of hair that is not gray: black, blond, brown, other.
_HAIR_ODDS = {
    "White": (0.15, 0.32, 0.43, 0.10),
    "Black": (0.84, 0.02, 0.12, 0.02),
    "Asian": (0.80, 0.02, 0.16, 0.02),
    "Indian": (0.85, 0.01, 0.13, 0.01),
    "Others": (0.50, 0.08, 0.37, 0.05),
}
# Skin tone from 0 (lightest) to 1 (darkest): range of each palette.
_SKIN_TONES = {
    "White": (0.0, 0.25),
    "Black": (0.72, 1.0),
    "Asian": (0.18, 0.38),
    "Indian": (0.45, 0.7),
    "Others": (0.28, 0.55),
}


@dataclass(frozen=True)
class Traits:
    """Everything about one face that a label or the drawing needs."""

    age: float
    race: str
    # 0 is the lightest skin, 1 the darkest.
    skin_tone: float
    expression: str
    hair_colour: HairColour
    hair_shape: HairShape
    long_hair: bool
    beard: Beard
    # What is known of the face, by label name: 36 of CelebA's attributes, gender, race, expression.
    # Attractive, High_Cheekbones, Oval_Face and Pointy_Nose are not drawn and stay unknown.
    labels: Mapping[str, bool]

    def __getitem__(self, label: str) -> bool:
        return self.labels[label]


def draw_traits(rng: np.random.Generator) -> Traits:
    """Draws the traits of one face, causes before effects."""

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    male = chance(0.5)
    child = chance(0.15)
    age = float(np.floor(rng.uniform(0, 15) if child else np.clip(15 + rng.gamma(2.2, 11.5), 15, 95)))
    grown = age >= 16
    race = str(rng.choice(_RACES, p=_RACE_ODDS))
    tone = float(rng.uniform(*_SKIN_TONES[race]))
    expression = str(rng.choice(EXPRESSIONS, p=_EXPRESSION_ODDS))
    mouth_open = chance({"happy": 0.65, "surprise": 0.95, "fear": 0.75}.get(expression, 0.08))

    hat = chance(0.09)
    bald = male and not hat and age > 22 and chance(min((age - 22) / 160, 0.3))
    gray = age > 35 and chance(min((age - 35) / 45, 0.92) * (1.0 if male else 0.75))
    colours: tuple[HairColour, ...] = ("Black_Hair", "Blond_Hair", "Brown_Hair", "other")
    colour: HairColour = "Gray_Hair" if gray else colours[rng.choice(4, p=_HAIR_ODDS[race])]
    long_hair = not bald and age > 3 and chance(0.06 if male else 0.78)
    cropped = not bald and not long_hair and chance(0.45)
    shape: HairShape = "cropped" if cropped else "wavy" if chance(0.3 if male else 0.5) else "straight"
    receding = male and not bald and not hat and not long_hair and age > 28 and chance(min((age - 20) / 120, 0.4))
    bangs = not (bald or hat or receding or cropped) and chance(0.12 if male else 0.34)

    beards: tuple[Beard, ...] = ("none", "stubble", "mustache", "goatee", "full")
    beard: Beard = beards[rng.choice(5, p=(0.54, 0.16, 0.08, 0.08, 0.14))] if male and grown else "none"
    makeup = not male and grown and chance(0.42)
    chubby = chance(0.1 if grown else 0.25)
    formal = male and age > 18 and chance(0.24)
    labels = {
        "Male": male,
        "Female": not male,
        "Young": age < 40,
        "Pale_Skin": tone < 0.07,
        "Mouth_Slightly_Open": mouth_open,
        "Smiling": expression == "happy",
        "Bald": bald,
        "Bangs": bangs,
        "Receding_Hairline": receding,
        "Straight_Hair": not bald and shape == "straight",
        "Wavy_Hair": not bald and shape == "wavy",
        "5_o_Clock_Shadow": beard == "stubble",
        "Goatee": beard in ("goatee", "full"),
        "Mustache": beard in ("mustache", "full"),
        "No_Beard": beard == "none",
        "Sideburns": beard == "full",
        "Eyeglasses": age > 4 and chance(0.06 + min(age, 70) / 260),
        "Wearing_Hat": hat,
        "Wearing_Lipstick": makeup and chance(0.9) or (not male and grown and chance(0.15)),
        "Heavy_Makeup": makeup,
        "Rosy_Cheeks": makeup and chance(0.35) or chance(0.04),
        "Wearing_Earrings": age > 5 and chance(0.03 if male else 0.5 if makeup else 0.2),
        "Wearing_Necklace": age > 5 and not formal and chance(0.04 if male else 0.32 if makeup else 0.14),
        "Wearing_Necktie": formal,
        "Bushy_Eyebrows": grown and chance(0.28 if male else 0.06),
        "Arched_Eyebrows": grown and expression != "angry" and chance(0.06 if male else 0.55 if makeup else 0.25),
        "Big_Nose": grown and chance(0.3 if male else 0.1),
        "Big_Lips": chance(0.15 if male else 0.28),
        "Narrow_Eyes": expression not in ("surprise", "fear") and chance(0.13),
        "Chubby": chubby,
        "Double_Chin": chubby and age > 25 and chance(0.55),
        "Bags_Under_Eyes": grown and chance(0.08 + max(age - 35, 0) / 80),
        "Blurry": chance(0.05),
    }
    labels |= {name: not bald and colour == name for name in (*colours[:3], "Gray_Hair")}
    labels |= {f"race:{name}": name == race for name in _RACES}
    labels |= {f"expression:{name}": name == expression for name in EXPRESSIONS}
    return Traits(age, race, tone, expression, colour, shape, long_hair, beard, labels)
