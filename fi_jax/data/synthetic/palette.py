"""Colours of the procedural faces: skin by tone, hair, lips, clothes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fi_jax.data.synthetic.traits import Traits

Rgb = Float[np.ndarray, "3"]

# Skin from the lightest tone to the darkest.
_SKIN = np.array(
    [(250, 224, 208), (238, 198, 168), (216, 168, 130), (178, 125, 88), (128, 84, 56), (78, 50, 36)], float
)
_HAIR = {
    "Black_Hair": [(22, 18, 18), (38, 30, 28)],
    "Blond_Hair": [(204, 164, 92), (236, 208, 146)],
    "Brown_Hair": [(84, 52, 30), (124, 80, 48)],
    "Gray_Hair": [(150, 150, 152), (218, 218, 220)],
    # Red and dyed hair, which is none of the four colours.
    "other": [(150, 46, 24), (178, 70, 34)],
}
_IRISES = np.array([(70, 42, 24), (60, 100, 140), (80, 110, 70), (110, 76, 40)], float)


def skin(tone: float) -> Rgb:
    """Returns the colour of skin of `tone` 0 (lightest) to 1 (darkest)."""
    at = tone * (len(_SKIN) - 1)
    return np.array([np.interp(at, range(len(_SKIN)), _SKIN[:, c]) for c in range(3)])


def hair(traits: Traits, rng: np.random.Generator) -> Rgb:
    """Returns a colour within the range of the hair's name; bald heads have it in brows and beard only."""
    low, high = np.array(_HAIR[traits.hair_colour], float)
    return low + (high - low) * rng.uniform()


def iris(traits: Traits, rng: np.random.Generator) -> Rgb:
    """Returns an eye colour; light eyes go with light skin."""
    return _IRISES[rng.integers(len(_IRISES)) if traits.skin_tone < 0.3 else 0]


def lips(traits: Traits, rng: np.random.Generator) -> Rgb:
    """Returns a lip colour: a darker, redder skin, or lipstick."""
    if traits["Wearing_Lipstick"]:
        return np.array([(196, 26, 52), (220, 60, 90), (150, 20, 48), (230, 80, 70)], float)[rng.integers(4)]
    return skin(traits.skin_tone) * (0.84, 0.68, 0.68) + (14, 0, 2)


def vivid(rng: np.random.Generator, low: float = 30, high: float = 220) -> Rgb:
    """Returns any colour between two grey levels."""
    return rng.uniform(low, high, 3)


def darker(colour: Rgb | Sequence[float], factor: float) -> Rgb:
    """Returns `colour` scaled; above 1 it gets lighter."""
    return np.clip(np.asarray(colour) * factor, 0, 255)
