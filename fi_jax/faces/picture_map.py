"""Segmentation maps of whole photographs: which detections are faces, and the map at the photograph's own size."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fi_jax.faces.face_detector import crop_for_model, find_faces
from fi_jax.faces.parser import FaceParser, class_logits, parse_crop
from fi_jax.labels.face_parts import CLASSES
from fi_jax.pictures.crop import Box, crop_square, square_box

# More candidates than this are not checked: a crowd's smallest faces.
MAX_CANDIDATES = 8
# A crop is classified at no more than this many pixels a side; above, classes are repeated.
MAX_SIDE = 2048


def faces_in(parser: FaceParser, image: UInt8[np.ndarray, "y x 3"]) -> list[Box]:
    """Returns the detected faces, largest first, without those that the parser does not take for a face.

    Detectors also fire on cushions and clouds; the parser gives a second opinion. Where it takes none for a face, faces
    are looked for everywhere: a rough search may have stopped at a cushion.
    """
    size = parser.input_size

    def confirmed(boxes: list[Box]) -> list[Box]:
        boxes = boxes[:MAX_CANDIDATES]
        maps = (parse_crop(parser, crop_square(image, crop_for_model(box), size)) for box in boxes)
        return [box for box, mask in zip(boxes, maps, strict=True) if looks_like_a_face(mask)]

    found = find_faces(image)
    faces = confirmed(found)
    return confirmed(find_faces(image, everywhere=True)) if found and not faces else faces


def looks_like_a_face(mask: UInt8[np.ndarray, "y x"]) -> bool:
    """Tells whether a crop's map could be of a face: enough skin, and two of nose, eyes and mouth."""
    share = np.bincount(mask.ravel(), minlength=len(CLASSES)) / mask.size

    def total(*names: str) -> float:
        return sum(share[CLASSES.index(name)] for name in names)

    parts = (total("nose"), total("l_eye", "r_eye", "eye_g"), total("mouth", "u_lip", "l_lip"))
    return bool(total("skin", "nose") > 0.08 and sum(part > 0.001 for part in parts) >= 2)


def map_of_picture(parser: FaceParser, image: UInt8[np.ndarray, "y x 3"], box: Box) -> UInt8[np.ndarray, "y x"]:
    """Returns the class of every pixel of the picture; outside the square around `box` it is 0.

    Class scores, not classes, are enlarged to the picture's pixels (bilinear), so that edges are smooth.
    """
    height, width = image.shape[:2]
    square = square_box(box, height, width)
    scores = _scores(parser, image, box)
    side = max(round(square[2] - square[0]), 1)
    fine = min(side, MAX_SIDE)
    best = np.full((fine, fine), -np.inf, np.float32)
    classes = np.zeros((fine, fine), np.uint8)
    # A class at a time: nineteen planes of a large crop would not fit.
    for index in range(scores.shape[-1]):
        coarse = Image.fromarray(np.ascontiguousarray(scores[..., index], np.float32))
        plane = np.asarray(coarse.resize((fine, fine), Image.Resampling.BILINEAR))
        better = plane > best
        classes[better] = index
        best = np.where(better, plane, best)
    left, top = round(square[0]), round(square[1])
    mask = np.zeros((height, width), np.uint8)
    # The nearest class of every pixel inside both picture and square.
    x = np.arange(max(left, 0), min(left + side, width))
    y = np.arange(max(top, 0), min(top + side, height))
    rows, columns = ((2 * (line - start) + 1) * fine // (2 * side) for line, start in ((y, top), (x, left)))
    mask[np.ix_(y, x)] = classes[np.ix_(rows, columns)]
    return mask


def _scores(parser: FaceParser, image: UInt8[np.ndarray, "y x 3"], box: Box) -> Float[np.ndarray, "h w c"]:
    crop = crop_square(image, box, parser.input_size)
    return np.asarray(class_logits(parser.config, parser.variables, crop[None]))[0]
