"""Scales a box of a picture to a square (antialiased bilinear) by the fastest of the libraries that are installed.

`cykooz.resizer` (Rust, vector instructions) takes a third of Pillow's time, which was a fifth of reading a face. It has
no wheel for Linux on ARM; there Pillow does the same. Both round twice, to within 1 of 255 of the exact mean, so one
value in eight differs by 1 between them: pixels, and with them runs, repeat to the last bit on machines of one kind.
"""

import threading

import numpy as np
from jaxtyping import UInt8
from PIL import Image

try:
    import cykooz_resizer as fast
except ImportError:
    fast = None

_own = threading.local()


def resize(image: UInt8[np.ndarray, "y x 3"], box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Returns the box (left, top, right, bottom; pixels, inside the picture) at `size`×`size`, `size size 3` uint8."""
    return (resize_pillow if fast is None else resize_fast)(image, box, size)


def resize_pillow(image: UInt8[np.ndarray, "y x 3"], box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """As `resize`, by Pillow."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))


def resize_fast(image: UInt8[np.ndarray, "y x 3"], box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """As `resize`, by `cykooz.resizer`, which must be installed."""
    left, top, right, bottom = box
    height, width = image.shape[:2]
    # Rounding must not carry the far edges out of the picture, which is refused.
    cut = fast.CropBox(left, top, min(right - left, width - left), min(bottom - top, height - top))
    bilinear = fast.ResizeAlg.convolution(fast.FilterType.bilinear)
    options = fast.ResizeOptions(bilinear, crop_box=cut, use_alpha=False)
    source = fast.ImageData(width, height, fast.PixelType.U8x3, image.tobytes())
    scaled = fast.ImageData(size, size, fast.PixelType.U8x3)
    _resizer().resize(source, scaled, options)
    return np.frombuffer(scaled.get_buffer(), np.uint8).reshape(size, size, 3)


def _resizer():
    # It keeps buffers of its own, so each thread has one.
    if not hasattr(_own, "resizer"):
        _own.resizer = fast.Resizer()
    return _own.resizer
