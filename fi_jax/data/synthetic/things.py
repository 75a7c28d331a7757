"""What surrounds and adorns a procedural face: background, clothes, hair, hat, glasses, jewellery."""

import numpy as np

from fi_jax.data.synthetic import palette
from fi_jax.data.synthetic.canvas import Canvas, Points, curve, ellipse, mirror, symmetric
from fi_jax.data.synthetic.head import Look
from fi_jax.data.synthetic.palette import darker
from fi_jax.data.synthetic.traits import Traits

_GOLD, _SILVER = (232, 190, 70), (226, 230, 236)


def background(canvas: Canvas, rng: np.random.Generator) -> None:
    """A soft gradient with a few blurred shapes."""
    from PIL import Image, ImageFilter

    first, second = palette.vivid(rng, 40, 235), palette.vivid(rng, 40, 235)
    coarse = np.linspace(0, 1, 16)[:, None, None] * (second - first) + first + rng.normal(0, 14, (16, 16, 1))
    coarse = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(1))
    canvas.image.paste(coarse.resize(canvas.image.size, Image.Resampling.BICUBIC))


def _wavy(points: Points, traits: Traits, amount: float = 0.012) -> Points:
    """Makes a contour wave, where the hair does."""
    if traits.hair_shape != "wavy":
        return points
    step = np.linspace(0, len(points) * 0.9, len(points))
    outward = points - points.mean(0)
    outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-6)
    return points + outward * (amount * np.sin(step * 1.4))[:, None]


def _strands(canvas: Canvas, traits: Traits, look: Look, lines: list[Points]) -> None:
    for i, line in enumerate(lines):
        if traits.hair_shape == "wavy":
            line = line + np.stack([0.009 * np.sin(np.linspace(0, 11, len(line)) + i), np.zeros(len(line))], 1)
        canvas.stroke(line, darker(look.hair, 1.22 if i % 2 else 0.78) + (i % 2) * 6, 0.004)


def hair_behind(canvas: Canvas, traits: Traits, look: Look) -> None:
    """Long hair falls behind the shoulders; short hair shows as a rim around the skull."""
    if traits["Bald"]:
        return
    w = look.width
    if traits.long_hair:
        spread = w + 0.075 + 0.008 * look.quirks[6]
        half = curve((0, -0.43), (0.17, -0.40), (spread - 0.01, -0.22), (spread, 0.05), (spread + 0.02, 0.30),
                     (spread + 0.01, 0.50), (0.14, 0.54), (0, 0.54), count=7)  # fmt: skip
    else:
        half = curve(
            (0, -0.405), (0.15, -0.375), (w + 0.022, -0.22), (w + 0.014, -0.02), (w * 0.8, 0.05), (0, 0.05), count=6
        )
    canvas.fill(_wavy(symmetric(half), traits, 0.016), darker(look.hair, 0.82), "hair")


def body(canvas: Canvas, traits: Traits, look: Look, rng: np.random.Generator) -> None:
    """Neck, clothes, and a necklace or necktie."""
    neck = 0.115 + 0.02 * traits["Male"] + 0.02 * traits["Chubby"] - 0.02 * (traits.age < 12)
    side = curve((neck, 0.2), (neck, 0.40), (neck + 0.05, 0.47), (neck + 0.12, 0.6), count=4)
    shadow = darker(look.skin, 0.8)
    canvas.fill(symmetric(side), darker(look.skin, 0.9), "neck")
    canvas.shade([(ellipse(0, look.chin - 0.005, 0.16, 0.06), 0.8)], darker(shadow, 0.8), 0.02, ("neck",))
    cloth = palette.vivid(rng) if not traits["Wearing_Necktie"] else palette.vivid(rng, 20, 90)
    depth = 0.47 if traits["Wearing_Necktie"] else 0.46 + 0.08 * (not traits["Male"]) + 0.01 * look.quirks[7]
    collar = curve(
        (0.0, depth + 0.02), (neck * 0.7, depth - 0.02), (neck + 0.025, 0.405), (0.30, 0.47), (0.55, 0.56), count=5
    )
    shoulders = np.concatenate([collar, [(0.9, 1.0), (-0.9, 1.0)], mirror(collar)[::-1]])
    canvas.fill(shoulders, cloth, "cloth")
    if traits["Wearing_Necktie"]:
        for s in (1, -1):
            shirt = np.array(
                [(0.0, depth + 0.2), (0, depth), (neck + 0.02, 0.40), (neck + 0.05, 0.46), (0.1, 0.62)]
            ) * (s, 1)
            canvas.fill(shirt, (238, 240, 244), "cloth")
        tie = palette.vivid(rng, 40, 200)
        canvas.fill(
            np.array([(-0.03, depth), (0.03, depth), (0.02, depth + 0.05), (-0.02, depth + 0.05)]),
            darker(tie, 0.8),
            "cloth",
        )
        canvas.fill(
            np.array([(-0.018, depth + 0.045), (0.018, depth + 0.045), (0.06, 0.9), (-0.06, 0.9)]), tie, "cloth"
        )
    else:
        canvas.stroke(np.concatenate([mirror(collar)[::-1], collar]), darker(cloth, 0.75), 0.01, "cloth")
    if traits["Wearing_Necklace"]:
        metal = _GOLD if look.quirks[0] > 0 else _SILVER
        line = curve(
            (-neck - 0.01, 0.41), (-neck * 0.6, 0.45), (0, 0.475), (neck * 0.6, 0.45), (neck + 0.01, 0.41), count=5
        )
        canvas.stroke(line, metal, 0.012, "neck_l")
        canvas.fill(ellipse(0, 0.485, 0.014, 0.016, 12), darker(metal, 0.85), "neck_l")


def hair_in_front(canvas: Canvas, traits: Traits, look: Look, rng: np.random.Generator) -> None:
    """The hair over the forehead and at the temples: hairline, bangs, strands."""
    t, w = traits, look.width
    if t["Bald"]:
        return
    colour, line = look.hair, -0.235 + 0.006 * look.quirks[1]
    if t.age < 2:
        line -= 0.05
    top = curve((-w - 0.02, -0.10), (-w - 0.012, -0.24), (-0.13, -0.395), (0, -0.42), (0.13, -0.395), (w + 0.012, -0.24),
                (w + 0.02, -0.10), count=6)  # fmt: skip
    if t.hair_shape == "cropped":
        top = top * (0.965, 0.95)
    if t["Receding_Hairline"]:
        inner = curve((w * 0.98, -0.10), (w * 0.86, -0.22), (0.13, -0.325), (0.06, -0.30), (0, -0.29), (-0.06, -0.30),
                      (-0.13, -0.325), (-w * 0.86, -0.22), (-w * 0.98, -0.10), count=5)  # fmt: skip
    elif t["Bangs"]:
        low = look.eye_y - 0.105
        inner = curve((w * 0.97, -0.06), (w * 0.84, low - 0.01), (0.09, low), (0, low - 0.008), (-0.09, low),
                      (-w * 0.84, low - 0.01), (-w * 0.97, -0.06), count=5)  # fmt: skip
    else:
        part = 0.10 * np.sign(look.quirks[2]) if t.long_hair else 0.05 * look.quirks[2]
        inner = curve((w * 0.985, -0.06), (w * 0.84, -0.17), (0.10, line), (part, line - 0.035), (-0.10, line),
                      (-w * 0.84, -0.17), (-w * 0.985, -0.06), count=5)  # fmt: skip
    canvas.fill(np.concatenate([_wavy(top, t), inner]), colour, "hair")
    if t.long_hair:
        lock = curve(
            (w * 0.55, -0.30), (w * 0.93, -0.16), (w * 0.93, 0.04), (w * 0.99, 0.22), (w + 0.01, 0.48), count=5
        )
        outer = curve(
            (w + 0.09, 0.48), (w + 0.065, 0.22), (w + 0.065, 0.0), (w + 0.04, -0.22), (w * 0.62, -0.36), count=5
        )
        shape = np.concatenate([lock, outer])
        for side in (shape, mirror(shape)):
            canvas.fill(_wavy(side, t, 0.009), colour, "hair")
        lines = [
            curve((w * 0.8, -0.25), (w + dx, -0.05), (w + dx, 0.18), (w + dx + 0.01, 0.45), count=8)
            for dx in (-0.0, 0.02, 0.04)
        ]
        _strands(canvas, t, look, [*lines, *(mirror(line) for line in lines)])
    over = [
        curve((x * 0.35, -0.405), (x * 0.8, -0.37), (x, -0.29 if t["Bangs"] else -0.30), count=6)
        for x in np.linspace(-0.19, 0.19, 9)
    ]
    _strands(canvas, t, look, [] if t["Receding_Hairline"] else over)
    if t.beard == "full":
        burn = np.array([(w * 0.90, -0.1), (w * 1.0, -0.1), (w * 1.0, 0.06), (w * 0.9, 0.06)])
        for side in (burn, mirror(burn)):
            canvas.fill(side, darker(colour, 0.85))


def hat(canvas: Canvas, traits: Traits, look: Look, rng: np.random.Generator) -> None:
    """A cap with a peak, a hat with a brim, or a knitted one; it covers the top of the hair."""
    if not traits["Wearing_Hat"]:
        return
    colour, w, kind = palette.vivid(rng), look.width + 0.035, int(rng.integers(3))
    crown = curve(
        (-w, -0.19), (-w * 0.97, -0.36), (-0.14, -0.47), (0.14, -0.47), (w * 0.97, -0.36), (w, -0.19), count=6
    )
    base = curve((w, -0.19), (0, -0.225), (-w, -0.19), count=6)
    canvas.fill(np.concatenate([crown, base]), colour, "hat")
    if kind == 0:
        peak = np.concatenate([curve((-w * 0.9, -0.2), (0, -0.25), (w * 0.9, -0.2), count=5),
                               curve((w * 0.98, -0.165), (0, -0.155), (-w * 0.98, -0.165), count=5)])  # fmt: skip
        canvas.fill(peak, darker(colour, 0.7), "hat")
    elif kind == 1:
        canvas.fill(ellipse(0, -0.2, w + 0.13, 0.04), darker(colour, 0.85), "hat")
        canvas.stroke(curve((-w, -0.235), (0, -0.265), (w, -0.235), count=5), darker(colour, 0.45), 0.03, "hat")
    else:
        canvas.stroke(base + (0, -0.012), darker(colour, 0.8), 0.055, "hat")
        for x in np.linspace(-0.2, 0.2, 7):
            canvas.stroke(np.array([(x, -0.24), (x * 0.75, -0.44)]), darker(colour, 0.88), 0.008)


def eyeglasses(canvas: Canvas, traits: Traits, look: Look, rng: np.random.Generator) -> None:
    """Frames and lenses; all of both is class eye_g, as in CelebAMask-HQ. Few are sunglasses."""
    if not traits["Eyeglasses"]:
        return
    from PIL import Image

    frame = np.array([(20, 20, 24), (90, 50, 24), (150, 150, 158), (120, 20, 30)], float)[rng.integers(4)]
    dark, square = rng.random() < 0.12, rng.random() < 0.5
    before = canvas.image.copy()
    rx, ry = 0.078, 0.056 if square else 0.062
    for side in (1, -1):
        x, y = side * (look.eye_x + 0.004) + look.turn, look.eye_y + 0.008
        angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
        power = 0.5 if square else 0.9
        bend = np.stack([np.cos(angle), np.sin(angle)], 1)
        lens = np.sign(bend) * np.abs(bend) ** power * (rx, ry) + (x, y)
        canvas.fill(lens, (28, 28, 34) if dark else (214, 224, 232), "eye_g")
        canvas.stroke(np.concatenate([lens, lens[:2]]), frame, 0.011, "eye_g")
        canvas.stroke(
            np.array([(side * (look.eye_x + 0.08) + look.turn, y - 0.02), (side * look.width, y - 0.03)]),
            frame,
            0.01,
            "eye_g",
        )
    inner = look.eye_x - 0.07
    bridge = curve((-inner, look.eye_y - 0.004), (0, look.eye_y - 0.014), (inner, look.eye_y - 0.004), count=4)
    canvas.stroke(bridge + (look.turn, 0), frame, 0.011, "eye_g")
    if not dark:
        # The eyes stay visible: lenses are blended, frames (dark against the lens) are kept.
        glass = Image.blend(before, canvas.image, 0.16)
        is_lens = Image.fromarray(
            np.where(np.abs(np.asarray(canvas.image, np.int16) - (214, 224, 232)).sum(-1) < 4, 255, 0).astype(np.uint8)
        )
        canvas.image.paste(glass, mask=is_lens)


def earrings(canvas: Canvas, traits: Traits, look: Look, rng: np.random.Generator) -> None:
    """Hoops, drops or studs below the ears."""
    if not traits["Wearing_Earrings"]:
        return
    metal, kind = (_GOLD, _SILVER)[rng.integers(2)], int(rng.integers(2))
    for side in (1, -1):
        x, y = side * (look.width + 0.014), 0.10
        if kind:
            ring = ellipse(x, y + 0.03, 0.026, 0.032, 20)
            canvas.stroke(np.concatenate([ring, ring[:2]]), metal, 0.011, "ear_r")
        else:
            canvas.stroke(np.array([(x, y - 0.015), (x, y + 0.03)]), metal, 0.009, "ear_r")
            canvas.fill(ellipse(x, y + 0.045, 0.016, 0.024, 14), darker(metal, 0.92), "ear_r")
