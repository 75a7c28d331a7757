"""Segmentation maps of whole photographs: which detections are faces, and the map at the photograph's own size."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fi_jax.faces.face_detector import crop_for_model, find_faces
from fi_jax.faces.parser import FaceParser, class_scores, parse_crop
from fi_jax.labels.face_parts import CLASSES
from fi_jax.pictures.crop import Box, crop_square, square_box

# More candidates than this are not checked: a crowd's smallest faces.
MAX_CANDIDATES = 8
# A crop is classified at no more than this many pixels a side; above, classes are repeated.
MAX_SIDE = 2048


def faces_in(parser: FaceParser, image: UInt8[np.ndarray, "y x 3"]) -> list[Box]:
    """Returns the detected faces, largest first, without those that the parser does not take for a face.

    Detectors also fire on cushions and clouds; the parser gives a second opinion.
    """
    size = parser.input_size
    faces = find_faces(image)[:MAX_CANDIDATES]
    maps = (parse_crop(parser, crop_square(image, crop_for_model(face), size)) for face in faces)
    return [face for face, mask in zip(faces, maps, strict=True) if looks_like_a_face(mask)]


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
    if fine != side:
        classes = np.asarray(Image.fromarray(classes).resize((side, side), Image.Resampling.NEAREST))
    left, top = round(square[0]), round(square[1])
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = classes[y0 - top : y1 - top, x0 - left : x1 - left]
    return mask


def _scores(parser: FaceParser, image: UInt8[np.ndarray, "y x 3"], box: Box) -> Float[np.ndarray, "h w c"]:
    crop = crop_square(image, box, parser.input_size)
    return np.asarray(class_scores(parser.config, parser.variables, crop[None]))[0]
