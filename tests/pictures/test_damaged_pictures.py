"""Pictures and maps with a few bytes changed, cut or repeated: read, or refused by name, in bounded memory."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from fuzz import MUTATIONS
from PIL import Image

from fi_jax.errors import UserError
from fi_jax.pictures.decode import decode

KINDS = ["PNG", "JPEG", "JPEG exif icc", "GIF", "WEBP", "TIFF", "TIFF lzw", "BMP", "AVIF", "mask"]

# Runs by itself, so that a limit on its memory binds it alone.
PROGRAM = """
import io, json, resource, sys
import numpy as np
from PIL import Image, ImageCms
from fi_jax.errors import UserError
from fi_jax.faces.face_detector import find_faces
from fi_jax.faces.masks import encode_mask, read_mask
from fi_jax.pictures.crop import crop_square, load_square
from fi_jax.pictures.decode import decode, picture_size, thumbnail

kind, count = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(KINDS.index(kind))
low = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
image = low.resize((56, 72), Image.Resampling.BICUBIC)
exif = Image.Exif()
exif[0x0112] = 6
icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
name, *rest = kind.split()
options = {"exif": exif, "icc_profile": icc} if "exif" in rest else {}
options |= {"compression": "tiff_lzw"} if "lzw" in rest else {}
if kind == "mask":
    whole = encode_mask(rng.integers(0, 19, (9, 9), dtype=np.uint8).repeat(8, 0).repeat(8, 1))
else:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    whole = buffer.getvalue()
    find_faces(decode(whole))

def mutated():
    data = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        # Half of the changes hit the headers.
        end = min(len(data), 120) if rng.random() < 0.5 else len(data)
        place, length = int(rng.integers(end)), int(2 ** rng.integers(0, 6))
        what = rng.integers(5)
        if what == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif what == 1:
            data[place : place + length] = rng.bytes(len(data[place : place + length]))
        elif what == 2:
            data[place : place + length] = (b"\\0" if rng.random() < 0.5 else b"\\xff") * len(data[place : place + length])
        elif what == 3:
            del data[place : place + length]
        else:
            data[place:place] = data[place : place + length]
        if len(data) < 2:
            break
    return bytes(data)

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2)
read = refused = 0
for number in range(count):
    data = mutated()
    try:
        if kind == "mask":
            read_mask(data, "x.png")
        else:
            try:
                size = picture_size(data, "x.png")
            except UserError:
                size = None
            pixels = decode(data, "x.png")
            assert size in (None, pixels.shape[:2]) and pixels.dtype == np.uint8 and pixels.shape[2] == 3
            for box in (None, (0, 0, 5, 7)):
                assert load_square(data, box, 16, "x.png").shape == crop_square(pixels, box, 16).shape
            thumbnail(data, 8, "x.png")
            if number % 40 == 0:
                find_faces(pixels)
        read += 1
    except UserError as error:
        assert "x.png" in str(error) and len(str(error).splitlines()) == 1, error
        refused += 1
print(json.dumps([read, refused]))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_named(kind):
    program = f"KINDS = {KINDS!r}\n" + PROGRAM
    done = subprocess.run(
        [sys.executable, "-c", program, kind, str(MUTATIONS)], capture_output=True, text=True, timeout=120 + MUTATIONS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    read, refused = json.loads(done.stdout.splitlines()[-1])
    assert read + refused == MUTATIONS and refused > MUTATIONS / 20


def jpeg(pixels, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def noisy() -> np.ndarray:
    """Soft colours with grain, as photographs have."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((210, 270), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(soft, np.float32) + rng.normal(0, 5, (270, 210, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"quality": 95, "subsampling": 0}, {"progressive": True}])
def test_a_hole_in_a_jpeg_is_damage(options):
    """Zeros anywhere behind the first scan's head; of a progressive file, behind its first scan."""
    whole = jpeg(noisy(), **options)
    scans = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\xda"]
    first = scans[1] if "progressive" in options else scans[0] + 14
    for size in (256, 1024) if "progressive" in options else (16, 64, 300, 3072):
        for place in range(first, len(whole) - size - 2, (len(whole) - first) // 23):
            if any(place - 14 < scan < place + size for scan in scans):
                continue
            with pytest.raises(UserError, match=r"'x.jpg' is a damaged"):
                decode(whole[:place] + bytes(size) + whole[place + size :], "x.jpg")


def test_flat_pictures_and_zeros_behind_the_end_are_no_holes():
    """Black, white, ramps, stripes and squares, whose files are full of zeros."""
    line, place = np.arange(450), np.indices((450, 450)).sum(0)
    pictures = (
        0 * place,
        255 * (place < 900),
        255 * (place < 400),
        line[None] // 2 + 0 * place,
        place % 2 * 255,
        place // 5 % 2 * 255,
    )
    for pixels in pictures:
        for options in ({}, {"optimize": True}, {"progressive": True}, {"restart_marker_blocks": 3}):
            for image in (pixels.astype(np.uint8), np.repeat(pixels.astype(np.uint8)[..., None], 3, -1)):
                for quality in (10, 75, 100):
                    whole = jpeg(image, quality=quality, **options)
                    assert np.array_equal(decode(whole), decode(whole + bytes(5000)))
