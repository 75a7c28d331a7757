"""One face of a picture as the model sees it: its crop and map, cut by the box or brought into the frame of all faces.

`data.frame` says which. In the `aligned` frame the parts of every face lie at the same places (`faces.alignment`); where the
map's parts cannot be trusted, the face stays in its box.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fi_jax.config import DataConfig
from fi_jax.faces.alignment import into_frame
from fi_jax.faces.map_cache import MAX_SIDE, map_of, parser_of
from fi_jax.pictures.crop import Box, crop_square, crop_square_mask, square_box


class FramedFace(NamedTuple):
    """What the model is shown of one face, and which frame it is in."""

    image: UInt8[np.ndarray, "s s 3"]
    mask: UInt8[np.ndarray, "s s"]
    frame: Literal["box", "aligned"]


def frame_face(
    image: UInt8[np.ndarray, "y x 3"],
    box: Box | None,
    data: DataConfig,
    parser: str,
    own: UInt8[np.ndarray, "y x"] | None = None,
) -> FramedFace:
    """Cuts one face of a picture, and its map, as `data` says; the parser makes the map where the picture has no `own`.

    `box` is the square around the face; None for the whole picture.
    """
    size = data.image_size
    if data.frame == "box":
        crop = crop_square(image, box, size)
        return FramedFace(crop, map_of(crop, parser) if own is None else crop_square_mask(own, box, size), "box")
    if own is None:
        mask = map_of(crop_square(image, box, parser_of(parser).input_size), parser)
    else:
        mask = crop_square_mask(own, box, MAX_SIDE)
    return align_face(lambda square, side: crop_square(image, square, side), mask, box, image.shape[:2], size)


def align_face(
    cut: Callable[[Box | None, int], UInt8[np.ndarray, "s s 3"]],
    mask: UInt8[np.ndarray, "m m"],
    box: Box | None,
    picture: tuple[int, int],
    size: int,
) -> FramedFace:
    """Brings a face into the frame by the `mask` of its box, or leaves it there. Arguments are those of `alignment.into_frame`."""
    framed = into_frame(cut, mask, square_box(box, *picture), picture, size)
    if framed is not None:
        return FramedFace(*framed, "aligned")
    resized = Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)
    return FramedFace(cut(box, size), np.asarray(resized), "box")
