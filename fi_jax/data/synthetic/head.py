"""The head of a procedural face: its proportions, skin, ears, beard, brows, eyes, nose and mouth."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fi_jax.data.synthetic import palette
from fi_jax.data.synthetic.canvas import Canvas, Points, curve, ellipse, mirror, symmetric
from fi_jax.data.synthetic.palette import darker
from fi_jax.data.synthetic.traits import Traits


@dataclass(frozen=True)
class Look:
    """Proportions and colours of one face, in face coordinates (see `Canvas`)."""

    width: float
    jaw: float
    chin: float
    eye_y: float
    eye_x: float
    eye_size: float
    nose_y: float
    mouth_y: float
    # Where the features sit left or right of the middle: the head is turned a little.
    turn: float
    # From 0 (a child) to 1 (very old).
    wrinkles: float
    ears_shown: bool
    skin: Float[np.ndarray, "3"]
    hair: Float[np.ndarray, "3"]
    iris: Float[np.ndarray, "3"]
    lips: Float[np.ndarray, "3"]
    # Personal variation of shapes, around 0.
    quirks: Float[np.ndarray, "8"]


def make_look(traits: Traits, rng: np.random.Generator) -> Look:
    """Draws the proportions: children have large eyes low in a round face, men wider jaws."""
    t, youth = traits, float(np.clip((16 - traits.age) / 16, 0, 1))
    quirks = np.clip(rng.normal(0, 1, 8), -2, 2)
    width = 0.232 + 0.005 * quirks[0] + 0.018 * t["Chubby"] + 0.012 * youth
    hair = palette.hair(t, rng)
    return Look(
        width=width,
        jaw=0.80 + 0.05 * t["Male"] + 0.08 * t["Chubby"] + 0.03 * youth + 0.02 * quirks[1],
        chin=0.335 - 0.05 * youth + 0.008 * quirks[2],
        eye_y=-0.035 + 0.045 * youth,
        eye_x=0.098 + 0.004 * quirks[3],
        eye_size=1.0 + 0.28 * youth + 0.08 * (not t["Male"]),
        nose_y=0.105 + 0.02 * youth,
        mouth_y=0.195 + 0.005 * quirks[4] - 0.004 * youth,
        turn=float(np.clip(rng.normal(0, 0.012), -0.03, 0.03)),
        wrinkles=float(np.clip((t.age - 28) / 50, 0, 1)),
        ears_shown=t["Bald"] or not t.long_hair,
        skin=palette.skin(t.skin_tone),
        hair=hair,
        iris=palette.iris(t, rng),
        lips=palette.lips(t, rng),
        quirks=quirks,
    )


def outline(look: Look) -> Points:
    """Returns the contour of the head, from skull to chin."""
    w, chin = look.width, look.chin
    right = curve(
        (0, -0.355), (0.13, -0.335), (0.21, -0.25), (w, -0.09), (w * 0.985, 0.06),
        (w * look.jaw, 0.20), (0.085 + 0.1 * (look.jaw - 0.8), chin - 0.02), (0, chin), count=6,
    )  # fmt: skip
    return symmetric(right)


def both_sides(look: Look, points: Points) -> tuple[Points, Points]:
    """Returns a feature of the picture's right half (the person's left) and its mirror image, turned with the head."""
    shift = np.array([look.turn, 0.0])
    return points + shift, mirror(points) + shift


def ears(canvas: Canvas, look: Look) -> None:
    """Ears stand beside the head; long hair covers them."""
    if not look.ears_shown:
        return
    for part, side in (("l_ear", 1), ("r_ear", -1)):
        shape = ellipse(side * (look.width + 0.012), 0.02, 0.032, 0.065, 20)
        canvas.fill(shape, darker(look.skin, 0.93), part)
        canvas.fill(ellipse(side * (look.width + 0.016), 0.02, 0.016, 0.042, 16), darker(look.skin, 0.8))


def skin(canvas: Canvas, traits: Traits, look: Look) -> None:
    """The face itself, its shading, cheeks, wrinkles and bags under the eyes."""
    t, w, dark = traits, look.width, darker(look.skin, 0.72)
    canvas.fill(outline(look), look.skin, "skin")
    rim = [(np.array([(w * 0.72, -0.3), (w * 1.1, -0.3), (w * 1.1, 0.3), (w * 0.55, 0.36), (w * 0.82, 0.1)]), 0.5)]
    rim += [(mirror(rim[0][0]), 0.5)]
    sockets = [(ellipse(s * look.eye_x + look.turn, look.eye_y - 0.03, 0.06, 0.035), 0.35) for s in (1, -1)]
    under_lip = [(ellipse(look.turn, look.mouth_y + 0.065, 0.05, 0.012), 0.4)]
    canvas.shade([*rim, *sockets, *under_lip], dark, 0.03, ("skin",))
    if t["Rosy_Cheeks"]:
        blush = [(ellipse(s * 0.135 + look.turn, 0.085, 0.055, 0.04), 0.6) for s in (1, -1)]
        canvas.shade(blush, (232, 92, 96), 0.022, ("skin",))
    crease = darker(look.skin, 0.82 - 0.12 * look.wrinkles)
    if look.wrinkles > 0.2:
        for fold in both_sides(look, curve((0.062, 0.09), (0.088, 0.14), (0.092, 0.19), count=5)):
            canvas.stroke(fold, crease, 0.006 + 0.004 * look.wrinkles)
    if look.wrinkles > 0.35:
        for y in np.linspace(-0.235, -0.175, 2 + round(2 * look.wrinkles)):
            canvas.stroke(curve((-0.12, y + 0.006), (0, y), (0.12, y + 0.006), count=5), crease, 0.005)
        for dy in (-0.015, 0.004, 0.022):
            for line in both_sides(look, np.array([(0.158, look.eye_y + dy * 0.6), (0.186, look.eye_y + dy * 1.7)])):
                canvas.stroke(line, crease, 0.005)
    if t["Bags_Under_Eyes"]:
        bag = curve((0.055, 0.035), (0.1, 0.056), (0.145, 0.032), count=5) + (0, look.eye_y + 0.01)
        for line in both_sides(look, bag):
            canvas.stroke(line, darker(look.skin, 0.74), 0.012)
    if t["Double_Chin"]:
        line = curve((-0.1, look.chin - 0.045), (0, look.chin - 0.012), (0.1, look.chin - 0.045), count=6)
        canvas.stroke(line, darker(look.skin, 0.7), 0.01)


def beard(canvas: Canvas, traits: Traits, look: Look) -> None:
    """Beards are part of the class skin, as in CelebAMask-HQ."""
    t, w, y = traits, look.width, look.mouth_y
    colour = darker(look.hair, 0.85)
    jaw = np.concatenate(
        [
            curve((-w * 0.99, 0.03), (-w * look.jaw, 0.20), (-0.085, look.chin - 0.02), (0, look.chin), count=6),
            curve((0, look.chin), (0.085, look.chin - 0.02), (w * look.jaw, 0.20), (w * 0.99, 0.03), count=6),
            curve((w * 0.88, 0.05), (0.13, y - 0.03), (0.0, y - 0.055), (-0.13, y - 0.03), (-w * 0.88, 0.05), count=6),
        ]
    )
    if t.beard == "stubble":
        canvas.shade([(jaw, 0.5)], darker(colour, 0.6), 0.012, ("skin",))
    if t.beard == "full":
        canvas.fill(jaw, colour)
    if t.beard == "goatee":
        canvas.fill(ellipse(look.turn, (y + look.chin) / 2 + 0.035, 0.05, (look.chin - y) / 2 - 0.012), colour)
    if t.beard in ("mustache", "full"):
        half = curve((0, y - 0.045), (0.05, y - 0.045), (0.092, y - 0.002), (0.05, y - 0.018), (0, y - 0.016), count=5)
        for side in both_sides(look, half):
            canvas.fill(side, colour)


# How expressions move the brows (raise, inner end down), the lids (opening) and the mouth (corners up, opening, width).
_EXPRESSIONS = {
    "neutral": (0.0, 0.0, 1.0, 0.0, 0.012, 1.0),
    "happy": (0.004, 0.0, 0.82, 0.036, 0.034, 1.2),
    "sad": (0.006, -0.024, 0.78, -0.026, 0.012, 0.92),
    "angry": (-0.02, 0.032, 0.8, -0.014, 0.014, 0.9),
    "surprise": (0.034, -0.004, 1.42, 0.0, 0.075, 0.72),
    "fear": (0.026, -0.024, 1.35, -0.014, 0.04, 1.12),
    "disgust": (-0.012, 0.014, 0.66, -0.02, 0.022, 0.95),
}


def eyes(canvas: Canvas, traits: Traits, look: Look) -> None:
    """Brows and eyes. The class of an eye is all of its opening."""
    t, size = traits, look.eye_size
    rise, inner, opening, *_ = _EXPRESSIONS[t.expression]
    height = 0.0215 * size * opening * (0.55 if t["Narrow_Eyes"] else 1.0)
    for side, part in ((1, "l_eye"), (-1, "r_eye")):
        x, y = side * look.eye_x + look.turn, look.eye_y
        rx = 0.047 * size
        lid = curve((-rx, 0.004), (-rx * 0.45, -height), (rx * 0.35, -height), (rx, -0.003), (rx * 0.3, height * 0.8),
                    (-rx * 0.5, height * 0.75), (-rx, 0.004), count=4)  # fmt: skip
        lid = lid * (side, 1) + (x, y)
        if t["Heavy_Makeup"]:
            canvas.fill(ellipse(x, y - height * 0.9, rx * 1.1, 0.02), darker(look.skin * (0.8, 0.62, 0.85), 0.8))
        canvas.fill(lid, (240, 238, 235), part)
        radius = min(0.0195 * size, height * 1.15)
        gaze = look.turn * 0.6
        canvas.fill(ellipse(x + gaze, y - 0.001, radius, radius, 16), look.iris)
        canvas.fill(ellipse(x + gaze, y - 0.001, radius * 0.5, radius * 0.5, 12), (15, 12, 12))
        canvas.fill(ellipse(x + gaze + 0.006, y - 0.007, 0.0035, 0.0035, 8), (250, 250, 250))
        line = (30, 22, 20) if t["Heavy_Makeup"] else darker(look.skin, 0.4)
        canvas.stroke(lid[:13], line, 0.009 if t["Heavy_Makeup"] else 0.005)
        _brow(canvas, traits, look, side, rise, inner)


def _brow(canvas: Canvas, traits: Traits, look: Look, side: int, rise: float, inner: float) -> None:
    t = traits
    thick = (
        0.0105
        + 0.003 * t["Male"]
        + 0.0105 * t["Bushy_Eyebrows"]
        - 0.0035 * (t["Heavy_Makeup"] and not t["Bushy_Eyebrows"])
    )
    arch = 0.03 if t["Arched_Eyebrows"] else 0.008
    y = look.eye_y - 0.062 - rise - 0.006 * t["Bushy_Eyebrows"]
    top = curve((0.042, y + inner), (0.085, y - arch * 0.55), (0.125, y - arch), (0.165, y + 0.018), count=5)
    taper = np.linspace(1.0, 0.35, len(top))[:, None] * (0, thick)
    shape = np.concatenate([top - taper, (top + taper)[::-1]]) * (side, 1) + (look.turn, 0)
    colour = darker(look.hair, 0.8) * 0.8 + look.skin * (0.2 if t.hair_colour != "Blond_Hair" else 0.1)
    canvas.fill(shape, colour, "l_brow" if side > 0 else "r_brow")


def nose(canvas: Canvas, traits: Traits, look: Look) -> None:
    """Bridge, tip and nostrils; disgust wrinkles it."""
    y, wide = look.nose_y, (0.062 if traits["Big_Nose"] else 0.043) + 0.002 * look.quirks[5]
    top = look.eye_y - 0.012
    half = curve((0.0, top), (0.017, top), (0.022, (top + y) / 2), (wide * 0.95, y - 0.014), (wide, y + 0.004),
                 (wide * 0.6, y + 0.018), (0.0, y + 0.022), count=5)  # fmt: skip
    shape = symmetric(half) + (look.turn * 1.6, 0)
    canvas.fill(shape, darker(look.skin, 0.955), "nose")
    x = look.turn * 1.6
    canvas.shade([(ellipse(x, (top + y) / 2, 0.012, (y - top) / 2), 0.7), (ellipse(x, y - 0.01, 0.02, 0.014), 0.7)],
                 darker(look.skin, 1.14), 0.012, ("nose",))  # fmt: skip
    for side in (1, -1):
        canvas.fill(ellipse(x + side * wide * 0.5, y + 0.013, wide * 0.2, 0.006, 12), darker(look.skin, 0.42))
        wing = curve((wide * 0.95, y - 0.016), (wide * 1.04, y + 0.002), (wide * 0.7, y + 0.018), count=4) * (side, 1)
        canvas.stroke(wing + (x, 0), darker(look.skin, 0.7), 0.006)
    if traits.expression == "disgust":
        for dy in (0.0, 0.016, 0.032):
            canvas.stroke(curve((-0.026, top + dy), (0, top + dy + 0.008), (0.026, top + dy), count=4) + (x, 0.01),
                          darker(look.skin, 0.62), 0.006)  # fmt: skip


def mouth(canvas: Canvas, traits: Traits, look: Look) -> None:
    """Upper lip, opening with teeth, lower lip."""
    t = traits
    *_, corners, opening, wide = _EXPRESSIONS[t.expression]
    half = 0.082 * wide * (1.06 if t["Big_Lips"] else 1.0)
    gap = opening * 1.15 if t["Mouth_Slightly_Open"] else 0.0
    full = 1.75 if t["Big_Lips"] else 1.0
    upper, lower = 0.016 * full, 0.021 * full
    x, y = look.turn * 1.3, look.mouth_y
    if t.expression == "disgust":
        upper *= 1.2
        y -= 0.008
    corner_y = y - corners
    sneer = 0.014 if t.expression == "disgust" else 0.0

    def line(middle: float, dip: float = 0.0) -> Points:
        return curve((-half, corner_y), (-half * 0.5, middle + (corner_y - y) * 0.25 - sneer), (0, middle + dip),
                     (half * 0.5, middle + (corner_y - y) * 0.25), (half, corner_y), count=5) + (x, 0)  # fmt: skip

    inner_top, inner_bottom = line(y - gap * 0.3), line(y + gap * 0.75)
    outer_top, outer_bottom = line(y - gap * 0.3 - upper, 0.004), line(y + gap * 0.75 + lower)
    if gap:
        canvas.fill(np.concatenate([inner_top, inner_bottom[::-1]]), (70, 18, 22), "mouth")
        if t.expression in ("happy", "fear", "neutral"):
            teeth = np.concatenate([inner_top, (inner_top * 0.45 + inner_bottom * 0.55)[::-1]])
            canvas.fill(teeth, (244, 240, 232))
    canvas.fill(np.concatenate([outer_top, inner_top[::-1]]), darker(look.lips, 0.92), "u_lip")
    canvas.fill(np.concatenate([inner_bottom, outer_bottom[::-1]]), darker(look.lips, 1.06), "l_lip")
    if not gap:
        canvas.stroke(inner_top, darker(look.lips, 0.5), 0.006)
    if t.expression == "happy":
        for crease in (
            curve((half + 0.006, corner_y - 0.02), (half + 0.018, corner_y), (half + 0.008, corner_y + 0.02), count=4),
        ):
            for side in both_sides(look, crease):
                canvas.stroke(side, darker(look.skin, 0.76), 0.006)
