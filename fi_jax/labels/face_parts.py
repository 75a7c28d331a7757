"""The 19 face-segmentation classes: names, colours, and which class a mirror image swaps for which."""

import numpy as np
from jaxtyping import UInt8

# CelebAMask-HQ's order. "Left" is the person's left, which is the picture's right. `eye_g` is
# eyeglasses, `ear_r` an earring, `neck_l` a necklace.
CLASSES = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear",
    "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
NUM_CLASSES = len(CLASSES)
# Colours of CelebAMask-HQ's own tools (RGB a class).
PALETTE: UInt8[np.ndarray, "19 3"] = np.array(
    [
        (0, 0, 0), (204, 0, 0), (76, 153, 0), (204, 204, 0), (51, 51, 255), (204, 0, 204), (0, 255, 255),
        (255, 204, 204), (102, 51, 0), (255, 0, 0), (102, 204, 0), (255, 255, 0), (0, 0, 153), (0, 0, 204),
        (255, 51, 153), (0, 204, 204), (0, 51, 0), (255, 153, 51), (0, 204, 0),
    ],
    np.uint8,
)  # fmt: skip
# Class that takes each class's place in a mirrored picture.
FLIPPED: UInt8[np.ndarray, "19"] = np.arange(NUM_CLASSES, dtype=np.uint8)
FLIPPED[[4, 5, 6, 7, 8, 9]] = [5, 4, 7, 6, 9, 8]
