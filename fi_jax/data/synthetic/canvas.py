"""A picture and its segmentation map, painted together: what is drawn on one is drawn on the other."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from fi_jax.labels.face_parts import CLASSES

Points = Float[np.ndarray, "n 2"]
Colour = Sequence[float] | Float[np.ndarray, "3"]
# Side of what is painted, in pixels of the finished face: twice as fine, then averaged.
FINENESS = 2


class Canvas:
    """Paints polygons given in face coordinates: the origin is the face's centre, lengths are sides, y is down."""

    def __init__(self, size: int, centre: tuple[float, float], scale: float, roll: float):
        """`size` in pixels; `centre` and `scale` as shares of the side; `roll` in radians."""
        self.size = size
        self.side = size * FINENESS
        turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
        self._matrix = turn * scale * self.side
        self._origin = np.array(centre) * self.side
        self.image = Image.new("RGB", (self.side, self.side))
        self.mask = Image.new("L", (self.side, self.side), 0)
        self._pen, self._stamp = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        return [tuple(p) for p in (np.asarray(points) @ self._matrix + self._origin).tolist()]

    def fill(self, points: Points, colour: Colour, part: str | None = None) -> None:
        """Paints a polygon; `part` is its class, None leaves the map as it is."""
        outline = self._pixels(points)
        self._pen.polygon(outline, fill=_rgb(colour))
        if part is not None:
            self._stamp.polygon(outline, fill=CLASSES.index(part))

    def stroke(self, points: Points, colour: Colour, width: float, part: str | None = None) -> None:
        """Draws a line of `width` (in sides)."""
        line, thick = self._pixels(points), max(round(width * abs(self._matrix[0, 0])), 1)
        self._pen.line(line, fill=_rgb(colour), width=thick, joint="curve")
        if part is not None:
            self._stamp.line(line, fill=CLASSES.index(part), width=thick, joint="curve")

    def shade(self, shapes: Sequence[tuple[Points, float]], colour: Colour, blur: float, only: Sequence[str]) -> None:
        """Blends soft polygons of `colour`, each with its opacity, into the parts `only`; the map stays as it is."""
        # Half the resolution: what is blurred has no detail to lose.
        small = (self.side // 2, self.side // 2)
        layer = Image.new("L", small, 0)
        pen = ImageDraw.Draw(layer)
        for points, opacity in shapes:
            pen.polygon([(x / 2, y / 2) for x, y in self._pixels(points)], fill=round(opacity * 255))
        layer = layer.filter(ImageFilter.BoxBlur(blur * self.side / 2)).resize(
            self.image.size, Image.Resampling.BILINEAR
        )
        table = [255 if name in only else 0 for name in CLASSES] + [0] * (256 - len(CLASSES))
        layer = ImageChops.multiply(layer, self.mask.point(table))
        self.image.paste(Image.new("RGB", self.image.size, _rgb(colour)), mask=layer)

    def finish(self) -> tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "s s"]]:
        """Returns picture and map at their final size."""
        image = np.asarray(self.image.reduce(FINENESS))
        return image, np.asarray(self.mask)[FINENESS // 2 :: FINENESS, FINENESS // 2 :: FINENESS].copy()


def _rgb(colour: Colour) -> tuple[int, int, int]:
    r, g, b = (min(max(round(float(v)), 0), 255) for v in colour)
    return r, g, b


def ellipse(x: float, y: float, rx: float, ry: float, count: int = 28) -> Points:
    """Returns an ellipse's outline."""
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)


def curve(*points: tuple[float, float], count: int = 16) -> Points:
    """Returns a smooth line through the points (Catmull-Rom)."""
    p = np.array([points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, count, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*pieces, p[-1:]])


def mirror(points: Points) -> Points:
    """Reflects points left to right."""
    return points * np.array([-1.0, 1.0])


def symmetric(half: Points) -> Float[np.ndarray, "2*n 2"]:
    """Returns the closed outline whose right half is given, from top to bottom."""
    return np.concatenate([half, mirror(half)[::-1]])
