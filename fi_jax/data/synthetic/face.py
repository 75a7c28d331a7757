"""Draws one procedural face: picture, exact map of the 19 classes, labels and age, from a seed and an index."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from fi_jax.data.synthetic import head, things
from fi_jax.data.synthetic.canvas import Canvas
from fi_jax.data.synthetic.traits import Traits, draw_traits

SIZE = 128


@dataclass(frozen=True)
class SyntheticFace:
    """One drawn face. `labels` holds what is known of it; the map's classes are those of `faces.masks`."""

    image: UInt8[np.ndarray, "s s 3"]
    mask: UInt8[np.ndarray, "s s"]
    labels: Mapping[str, bool]
    age: float
    traits: Traits


def traits_of(seed: int, index: int) -> Traits:
    """Returns the traits of face `index`, without drawing it."""
    return draw_traits(np.random.default_rng((seed, index, 0)))


def draw_face(seed: int, index: int, size: int = SIZE) -> SyntheticFace:
    """Draws face `index` of series `seed`: a pure function of both, about 100 faces a second.

    Args:
      size: side of the picture and its map, in pixels.
    """
    traits = traits_of(seed, index)
    rng = np.random.default_rng((seed, index, 1))
    look = head.make_look(traits, rng)
    canvas = Canvas(
        size,
        centre=(0.5 + rng.normal(0, 0.015), 0.53 + rng.normal(0, 0.015)),
        scale=rng.uniform(0.9, 1.08),
        roll=float(np.clip(rng.normal(0, 0.07), -0.25, 0.25)),
    )
    things.background(canvas, rng)
    things.hair_behind(canvas, traits, look)
    things.body(canvas, traits, look, rng)
    head.ears(canvas, look)
    head.skin(canvas, traits, look)
    head.beard(canvas, traits, look)
    head.eyes(canvas, traits, look)
    head.nose(canvas, traits, look)
    head.mouth(canvas, traits, look)
    things.eyeglasses(canvas, traits, look, rng)
    things.hair_in_front(canvas, traits, look, rng)
    things.hat(canvas, traits, look, rng)
    things.earrings(canvas, traits, look, rng)
    image, mask = canvas.finish()
    return SyntheticFace(_photograph(image, traits, rng), mask, traits.labels, traits.age, traits)


def _photograph(image: np.ndarray, traits: Traits, rng: np.random.Generator) -> np.ndarray:
    """Light from a side, a colour cast, grain; blurry pictures are blurred."""
    side = image.shape[0]
    if traits["Blurry"]:
        from PIL import Image, ImageFilter

        image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(side / 45)))
    line = np.linspace(-1, 1, side, dtype=np.float32)
    x, y = rng.uniform(-0.16, 0.16), rng.uniform(-0.1, 0.04)
    light = 1 + x * line[None, :] + y * line[:, None]
    cast = rng.uniform(0.92, 1.06, 3).astype(np.float32) * np.float32(rng.uniform(0.88, 1.06))
    grain = rng.standard_normal((side, side), dtype=np.float32) * rng.uniform(1, 5)
    lit = image * (light[..., None].astype(np.float32) * cast) + grain[..., None]
    return np.clip(lit, 0, 255).astype(np.uint8)
