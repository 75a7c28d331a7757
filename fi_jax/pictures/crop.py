"""Square crops around boxes of pictures, and of maps with the same geometry."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fi_jax.errors import UserError
from fi_jax.pictures.decode import decode_for
from fi_jax.pictures.header import Readable
from fi_jax.pictures.resize import resize

# Left, top, right, bottom in pixels; may overrun the picture.
Box = tuple[float, float, float, float]


def load_square(
    source: Readable | bytes, box: Box | None, size: int, name: str = ""
) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes the square around `box` at `size`×`size`: `crop_square(decode(source), box, size)`, but faster.

    A JPEG is decoded at the smallest of its scales (eighths) at which the square still has `size`
    pixels, so that little is left to resize. Errors are those of `decode` and `crop_square`.
    """
    side = None if box is None else max(box[2] - box[0], box[3] - box[1])
    decoded = decode_for(source, size, side, name)
    if decoded.eighths != 8:
        square = square_box(box, decoded.height, decoded.width)
        _check_inside(square, box, decoded.height, decoded.width)
        left, top, right, bottom = (edge * decoded.eighths / 8 for edge in square)
        box = (left, top, right, bottom)
    return crop_square(decoded.pixels, box, size)


def square_box(box: Box | None, height: int, width: int) -> Box:
    """Returns the square around a box's centre whose side is the box's longer one (pixels, may overrun).

    `None` stands for the whole picture of `height` × `width` pixels.
    """
    left, top, right, bottom = box if box is not None else (0.0, 0.0, float(width), float(height))
    if not (right > left and bottom > top):
        raise UserError(f"box {box} is empty; it must be left,top,right,bottom with left < right and top < bottom")
    side = max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    if not math.isfinite(side + x + y):
        raise UserError(f"box {box} is not finite; it must be left,top,right,bottom in pixels")
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def enlarge(box: Box, factor: float) -> Box:
    """Returns `box` scaled by `factor` about its centre (pixels, may overrun the picture)."""
    left, top, right, bottom = box
    x, y, w, h = (left + right) / 2, (top + bottom) / 2, (right - left) * factor, (bottom - top) * factor
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


# Above this side, a square is cut from the picture at a reduced scale, so that no padding takes more than 200 MB.
_MAX_SIDE = 8192
# A box this many times larger than the picture is a mistake: nothing of the picture would be seen.
_MAX_TIMES = 16


def crop_square(image: UInt8[np.ndarray, "y x 3"], box: Box | None, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Cuts the square around `box` and scales it to `size`×`size` (antialiased bilinear).

    The box is squared by `square_box`; where it overruns the picture, the picture's edge is repeated.
    """
    image, box = _reduced(image, box, lambda cut, factor: np.asarray(Image.fromarray(cut).reduce(factor)))
    image, square = _padded(image, box, mode="edge")
    if image.shape[:2] == (size, size) and square == (0, 0, size, size):
        return image
    return resize(image, square, size)


def crop_square_mask(mask: UInt8[np.ndarray, "y x"], box: Box | None, size: int) -> UInt8[np.ndarray, "size size"]:
    """Cuts a map of class indices with `crop_square`'s geometry (nearest; 0 where the box overruns)."""
    mask, box = _reduced(mask, box, lambda cut, factor: cut[::factor, ::factor])
    mask, square = _padded(mask, box, mode="constant")
    if mask.shape == (size, size) and square == (0, 0, size, size):
        return mask
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST, box=square))


def _check_inside(square: Box, box: Box | None, height: int, width: int) -> None:
    left, top, right, bottom = square
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise UserError(f"box {box} lies outside the {width}x{height} picture")
    if right - left > _MAX_TIMES * max(height, width):
        raise UserError(f"box {box} is more than {_MAX_TIMES} times as large as the {width}x{height} picture")


def _reduced(
    image: np.ndarray, box: Box | None, reduce: Callable[[np.ndarray, int], np.ndarray]
) -> tuple[np.ndarray, Box | None]:
    """Returns a picture and a box in it as they are, or a huge square's at a whole fraction of the scale."""
    height, width = image.shape[:2]
    square = square_box(box, height, width)
    if square[2] - square[0] <= _MAX_SIDE:
        return image, box
    _check_inside(square, box, height, width)
    factor = int((square[2] - square[0]) // (_MAX_SIDE // 2))
    left, top = max(int(square[0]), 0), max(int(square[1]), 0)
    cut = image[top : math.ceil(square[3]), left : math.ceil(square[2])]
    x0, y0, x1, y1 = square
    box = ((x0 - left) / factor, (y0 - top) / factor, (x1 - left) / factor, (y1 - top) / factor)
    return reduce(np.ascontiguousarray(cut), factor), box


def _padded(image: np.ndarray, box: Box | None, mode: Literal["edge", "constant"]) -> tuple[np.ndarray, Box]:
    """Returns the picture cut or padded to whole pixels around the square box, and the box inside it."""
    height, width = image.shape[:2]
    left, top, right, bottom = square_box(box, height, width)
    _check_inside((left, top, right, bottom), box, height, width)
    # Cutting first keeps the padding of a huge picture small.
    x0, y0, x1, y1 = int(np.floor(left)), int(np.floor(top)), int(np.ceil(right)), int(np.ceil(bottom))
    cut = image[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
    pad: list[tuple[int, int]] = [(max(-y0, 0), max(y1 - height, 0)), (max(-x0, 0), max(x1 - width, 0))]
    if any(before or after for before, after in pad):
        cut = np.pad(cut, pad + [(0, 0)] * (image.ndim - 2), mode=mode)
    return np.ascontiguousarray(cut), (left - x0, top - y0, right - x0, bottom - y0)
