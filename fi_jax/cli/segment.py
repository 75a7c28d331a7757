"""Parse faces: write a segmentation map of 19 classes for every picture.

The map is a palette PNG of the picture's own size (upright, as its EXIF orientation says) whose pixel values are
the classes: 0 background, 1 skin, 2 nose, 3 eyeglasses, 4/5 left/right eye, 6/7 brow, 8/9 ear, 10 mouth,
11/12 upper/lower lip, 13 hair, 14 hat, 15 earring, 16 necklace, 17 neck, 18 cloth. Left is the person's left.
Only the square around the face is parsed; all else is 0. Files that the command did not write are never replaced.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

# Written into every file, so that a later run knows its own and replaces no other.
MARK = "fi-jax segment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, each with at least one face")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the maps: DIR/<picture's name>.png")
    parser.add_argument("--box", default="", help="left,top,right,bottom in pixels, or 'full'; overrides face finding")
    parser.add_argument("--face", type=int, default=0, help="which face, largest first, when there are several")
    parser.add_argument("--colour", action="store_true", help="also write DIR/<name>.colour.png, map over picture")
    parser.add_argument("--parser", default="bundled", help="bundled, a folder of train-parser, or a Hub name")


def run(args: argparse.Namespace) -> int:
    """Runs the command; a picture that fails is reported, the others are still parsed, and the status is 2."""
    from fi_jax.cli.runtime import start
    from fi_jax.errors import UserError

    paths = [Path(image) for image in args.images]
    _check_outputs(paths, Path(args.out), args.colour)
    start()
    from fi_jax.faces.parser import load_parser

    parser = load_parser(args.parser)
    failures = 0
    for path in paths:
        try:
            print(_segment(parser, path, args))
        except UserError as error:
            failures += 1
            print(f"fi-jax: {error}", file=sys.stderr)
    if failures and len(paths) > 1:
        print(f"fi-jax: {failures} of {len(paths)} pictures failed", file=sys.stderr)
    return 2 if failures else 0


def _outputs(path: Path, out: Path, colour: bool) -> list[Path]:
    return [out / f"{path.stem}.png", *([out / f"{path.stem}.colour.png"] if colour else [])]


def _check_outputs(paths: list[Path], out: Path, colour: bool) -> None:
    """Refuses, before any work, to write a file twice, over a picture, over files of others, or where it cannot."""
    from fi_jax.errors import UserError
    from fi_jax.files import refuse_overwrite, require_writable

    outputs = [output for path in paths for output in _outputs(path, out, colour)]
    twice = next((output for output in outputs if outputs.count(output) > 1), None)
    if twice:
        raise UserError(f"two pictures would both be written to {twice}; parse them apart")
    require_writable(out)
    refuse_overwrite(outputs, paths, MARK.encode())


def _segment(parser, path: Path, args: argparse.Namespace) -> str:
    import numpy as np
    from PIL import Image

    from fi_jax.faces.face_detector import list_faces, locate
    from fi_jax.faces.masks import colourise, png_note, write_mask
    from fi_jax.faces.picture_map import faces_in, map_of_picture
    from fi_jax.files import atomic_path
    from fi_jax.labels.face_parts import CLASSES
    from fi_jax.pictures.decode import decode

    image = decode(path)
    box, faces = locate(image, partial(faces_in, parser), args.box, args.face, str(path))
    note = ""
    if len(faces) > 1 and not args.face:
        note = f" (the largest of {len(faces)} faces; choose with --face: {list_faces(faces)})"
    mask = map_of_picture(parser, image, box)
    target, *colour = _outputs(path, Path(args.out), args.colour)
    write_mask(target, mask, MARK)
    for output in colour:
        shown = np.where((mask > 0)[..., None], image * 0.45 + colourise(mask) * 0.55, image).astype(np.uint8)
        with atomic_path(output) as temporary:
            Image.fromarray(shown).save(temporary, pnginfo=png_note(MARK))
    count = np.bincount(mask.ravel(), minlength=len(CLASSES))
    present = ", ".join(name for name, pixels in zip(CLASSES[1:], count[1:], strict=True) if pixels)
    return f"{path} -> {target}: {present}{note}"
