"""Finds faces in photographs and says which square around one is cropped for the model.

The detector is the LBP cascade that scikit-image bundles (Zhang et al. 2007 features, OpenCV's frontal-face
training): frontal faces of any size, no download, tens of milliseconds a picture. A rough search says where to look
closely, which takes 0.4 of the time of looking everywhere. That is done where nothing was found so: beside a face that
was found, one that the rough search misses is lost.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fi_jax.errors import UserError
from fi_jax.pictures.crop import Box

# The cascade sees 24-pixel windows; pictures are brought to a longer side between these before the search.
MIN_SEARCH_SIDE = 320
MAX_SEARCH_SIDE = 640
# Faces narrower than this in the searched picture are not looked for.
MIN_FACE = 32
# A second look goes this far around a first one, in sides of its box, and for faces so many times as large or small.
ROOM = 0.5
NEAR_SIZE = 1.5
# In tight face crops the face takes at least this share of the shorter side.
TIGHT_FACE = 0.45

# The crop in terms of the detected box, calibrated on the training crops: their side, and how far their centre
# lies above the box's, in widths of the box. Medians: CelebA 1.74 and 0.05, CelebAMask-HQ 1.61 and 0.08,
# ExpW 1.65 and 0.05 (UTKFace's chips are tighter: 1.26 and -0.09).
CROP_SCALE = 1.67
CROP_UP = 0.06


def find_faces(image: UInt8[np.ndarray, "y x 3"], everywhere: bool = False) -> list[Box]:
    """Returns the box of every frontal face (left, top, right, bottom, pixels), largest first.

    The cost does not depend on the picture's size: it is scaled to at most `MAX_SEARCH_SIDE` first. A
    picture in which nothing is found is searched once more with its edge repeated outwards by a quarter,
    for large faces alone: the cascade needs some room around a face, and tight crops leave none.
    `everywhere`: ask every window, not only those where a rough search found something.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    scale = min(max(side, MIN_SEARCH_SIDE), MAX_SEARCH_SIDE) / side
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    if min(size) < MIN_FACE:
        return []
    # Shrinking by whole factors first (reducing_gap) keeps huge pictures cheap.
    small = np.asarray(
        Image.fromarray(image)
        .resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC, reducing_gap=2.0)
        .convert("L")
    )
    boxes = _detect(small, MIN_FACE, min(small.shape)) if everywhere else _search(small)
    if not boxes:
        margin = max(size) // 4
        padded = np.pad(small, margin, mode="edge")
        boxes = [
            tuple(v - margin for v in box)
            for box in _detect(padded, round(TIGHT_FACE * min(size)), min(padded.shape), step=1.0)
        ]
    faces = [tuple(v / scale for v in box) for box in boxes]
    return suppress([box for box in faces if _centre_inside(box, height, width)])


@cache
def _cascade():
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())


def _search(grey: UInt8[np.ndarray, "y x"]) -> list[Box]:
    """Faces of any size: where a few windows say that there may be one, all windows about there are asked."""
    height, width = grey.shape
    found = []
    for (left, top, right, bottom), smallest, largest in _regions(
        _detect(grey, MIN_FACE, min(grey.shape), step=2.4, agreeing=1)
    ):
        x, y = max(round(left), 0), max(round(top), 0)
        part = np.ascontiguousarray(grey[y : min(round(bottom), height), x : min(round(right), width)])
        boxes = _detect(part, max(round(smallest / NEAR_SIZE), MIN_FACE), round(largest * NEAR_SIZE))
        found += [(box[0] + x, box[1] + y, box[2] + x, box[3] + y) for box in boxes]
    # Of sixteen copies of one portrait, shifted by a pixel each, a rough search alone missed one.
    return found or _detect(grey, MIN_FACE, min(grey.shape))


class _Region(NamedTuple):
    """Where a rough search found something, with room around, and the sides of the boxes that it found there."""

    place: Box
    smallest: float
    largest: float


def _regions(boxes: list[Box]) -> list[_Region]:
    """Regions to look at again; those that share half of the smaller one are one."""
    regions: list[_Region] = []
    for left, top, right, bottom in boxes:
        side = right - left
        room = ROOM * side
        region = _Region((left - room, top - room, right + room, bottom + room), side, side)
        for other in [other for other in regions if _overlaps(other.place, region.place, 0.5)]:
            regions.remove(other)
            a, b = region.place, other.place
            place = (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
            region = _Region(place, min(region.smallest, other.smallest), max(region.largest, other.largest))
        regions.append(region)
    return regions


def _detect(
    grey: UInt8[np.ndarray, "y x"],
    smallest: int,
    largest: int,
    step: float = 1.2,
    agreeing: int = 4,
) -> list[Box]:
    """Boxes that so many agreeing windows of the cascade make; `step` is how far apart windows are."""
    found = _cascade().detect_multi_scale(
        img=grey, scale_factor=1.1, step_ratio=step, min_size=(smallest, smallest), max_size=(largest, largest),
        min_neighbor_number=agreeing,
    )  # fmt: skip
    return [(float(f["c"]), float(f["r"]), float(f["c"] + f["width"]), float(f["r"] + f["height"])) for f in found]


def _centre_inside(box: Box, height: int, width: int) -> bool:
    return 0 <= (box[0] + box[2]) / 2 <= width and 0 <= (box[1] + box[3]) / 2 <= height


def suppress(boxes: list[Box], overlap: float = 0.3) -> list[Box]:
    """Sorts boxes by area, largest first, and drops each that overlaps a larger one.

    Overlap is the intersection over the smaller area, so that a "face" found inside a face goes too.
    """
    kept: list[Box] = []
    for box in sorted(boxes, key=area, reverse=True):
        if not any(_overlaps(box, other, overlap) for other in kept):
            kept.append(box)
    return kept


def area(box: Box) -> float:
    """Returns the area of a box in square pixels."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _overlaps(a: Box, b: Box, overlap: float) -> bool:
    """Whether two boxes have more than this share of the smaller in common."""
    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return common > overlap * min(area(a), area(b))


def crop_for_model(face: Box) -> Box:
    """Returns the square around a detected face that is framed as the training crops are.

    It may overrun the picture; `pictures.crop.crop_square` then repeats the picture's edge.
    """
    left, top, right, bottom = face
    side = max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2 - CROP_UP * side
    half = CROP_SCALE * side / 2
    return (x - half, y - half, x + half, y + half)


def choose_face(faces: list[Box], number: int = 0, name: str = "the picture") -> Box:
    """Returns one detected face: the largest (`number` 0), or the `number`-th, counted from 1, largest first.

    Raises:
      UserError: there is no face, or fewer than `number`; the message lists the boxes there are.
    """
    if not faces:
        raise UserError(
            f"no face found in {name}; give --box left,top,right,bottom (pixels), "
            "or --box full if the picture is already a face crop"
        )
    if not 0 <= number <= len(faces):
        raise UserError(f"--face {number}: {name} has {len(faces)} face(s): {list_faces(faces)}")
    return faces[max(number, 1) - 1]


def list_faces(faces: list[Box]) -> str:
    """Returns `"1: 10,20,110,120; 2: ..."`, the numbers and boxes a user chooses from."""
    return "; ".join(f"{i}: {','.join(str(round(v)) for v in box)}" for i, box in enumerate(faces, 1))


def parse_box(text: str, height: int, width: int) -> Box:
    """Reads `--box`: four pixel coordinates "left,top,right,bottom", or "full" for the whole picture.

    A box may overrun the picture. An edge that lies farther outside than the picture's longer side is set to the
    picture's edge.

    Raises:
      UserError: not four numbers, an empty box, or one that lies outside the picture.
    """
    if text.strip().lower() == "full":
        return (0.0, 0.0, float(width), float(height))
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--box '{text}' is not left,top,right,bottom (four numbers, pixels) or 'full'") from None
    if not (right > left and bottom > top):
        raise UserError(f"--box '{text}' is empty; it needs left < right and top < bottom")
    far = max(height, width)
    left, top = (edge if edge >= -far else 0.0 for edge in (left, top))
    right, bottom = right if right <= width + far else width, bottom if bottom <= height + far else height
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise UserError(f"--box '{text}' lies outside the {width}x{height} picture")
    return (left, top, right, bottom)


class Located(NamedTuple):
    """The box to crop for the model, and the faces that it was chosen from: none where a box was given."""

    box: Box
    faces: list[Box]


def locate(
    image: UInt8[np.ndarray, "y x 3"],
    find: Callable[[UInt8[np.ndarray, "y x 3"]], list[Box]],
    box: Box | str | None = None,
    face: int = 0,
    name: str = "the picture",
) -> Located:
    """Returns the face that is meant: the given `box` (a text is read by `parse_box`), else face `face` of those found.

    `find` returns a picture's faces, largest first.

    Raises:
      UserError: see `parse_box` and `choose_face`.
    """
    if isinstance(box, str):
        box = parse_box(box, *image.shape[:2]) if box else None
    if box is not None:
        return Located(box, [])
    faces = find(image)
    return Located(crop_for_model(choose_face(faces, face, name)), faces)
