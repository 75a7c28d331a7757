"""Says what one procedural face is: a small causal model draws its traits, and labels follow from them.

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

    male: bool
    age: float
    race: str
    # 0 is the lightest skin, 1 the darkest.
    skin_tone: float
    expression: str
    mouth_open: bool
    hair_colour: HairColour
    hair_shape: HairShape
    long_hair: bool
    bald: bool
    bangs: bool
    receding: bool
    beard: Beard
    eyeglasses: bool
    hat: bool
    lipstick: bool
    makeup: bool
    rosy: bool
    earrings: bool
    necklace: bool
    necktie: bool
    bushy_brows: bool
    arched_brows: bool
    big_nose: bool
    big_lips: bool
    narrow_eyes: bool
    chubby: bool
    double_chin: bool
    eye_bags: bool
    blurry: bool


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
    return Traits(
        male=male,
        age=age,
        race=race,
        skin_tone=tone,
        expression=expression,
        mouth_open=mouth_open,
        hair_colour=colour,
        hair_shape=shape,
        long_hair=long_hair,
        bald=bald,
        bangs=bangs,
        receding=receding,
        beard=beard,
        eyeglasses=age > 4 and chance(0.06 + min(age, 70) / 260),
        hat=hat,
        lipstick=makeup and chance(0.9) or (not male and grown and chance(0.15)),
        makeup=makeup,
        rosy=makeup and chance(0.35) or chance(0.04),
        earrings=age > 5 and chance(0.03 if male else 0.5 if makeup else 0.2),
        necklace=age > 5 and not formal and chance(0.04 if male else 0.32 if makeup else 0.14),
        necktie=formal,
        bushy_brows=grown and chance(0.28 if male else 0.06),
        arched_brows=grown and expression != "angry" and chance(0.06 if male else 0.55 if makeup else 0.25),
        big_nose=grown and chance(0.3 if male else 0.1),
        big_lips=chance(0.15 if male else 0.28),
        narrow_eyes=expression not in ("surprise", "fear") and chance(0.13),
        chubby=chubby,
        double_chin=chubby and age > 25 and chance(0.55),
        eye_bags=grown and chance(0.08 + max(age - 35, 0) / 80),
        blurry=chance(0.05),
    )


def labels_of(traits: Traits) -> Mapping[str, bool]:
    """Returns what is known of the face, by label name: 36 of CelebA's attributes, gender, race, expression.

    Attractive, High_Cheekbones, Oval_Face and Pointy_Nose are not drawn and stay unknown.
    """
    t = traits
    return {
        "5_o_Clock_Shadow": t.beard == "stubble",
        "Arched_Eyebrows": t.arched_brows,
        "Bags_Under_Eyes": t.eye_bags,
        "Bald": t.bald,
        "Bangs": t.bangs,
        "Big_Lips": t.big_lips,
        "Big_Nose": t.big_nose,
        **{
            name: not t.bald and t.hair_colour == name
            for name in ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
        },
        "Blurry": t.blurry,
        "Bushy_Eyebrows": t.bushy_brows,
        "Chubby": t.chubby,
        "Double_Chin": t.double_chin,
        "Eyeglasses": t.eyeglasses,
        "Goatee": t.beard in ("goatee", "full"),
        "Heavy_Makeup": t.makeup,
        "Male": t.male,
        "Female": not t.male,
        "Mouth_Slightly_Open": t.mouth_open,
        "Mustache": t.beard in ("mustache", "full"),
        "Narrow_Eyes": t.narrow_eyes,
        "No_Beard": t.beard == "none",
        "Pale_Skin": t.skin_tone < 0.07,
        "Receding_Hairline": t.receding,
        "Rosy_Cheeks": t.rosy,
        "Sideburns": t.beard == "full",
        "Smiling": t.expression == "happy",
        "Straight_Hair": not t.bald and t.hair_shape == "straight",
        "Wavy_Hair": not t.bald and t.hair_shape == "wavy",
        "Wearing_Earrings": t.earrings,
        "Wearing_Hat": t.hat,
        "Wearing_Lipstick": t.lipstick,
        "Wearing_Necklace": t.necklace,
        "Wearing_Necktie": t.necktie,
        "Young": t.age < 40,
        **{f"race:{race}": t.race == race for race in _RACES},
        **{f"expression:{expression}": t.expression == expression for expression in EXPRESSIONS},
    }
