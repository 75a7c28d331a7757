"""Parse faces: write a segmentation map of 19 classes for every picture.

The map is a palette PNG of the picture's own size (upright, as its EXIF orientation says) whose pixel values are
the classes: 0 background, 1 skin, 2 nose, 3 eyeglasses, 4/5 left/right eye, 6/7 brow, 8/9 ear, 10 mouth,
11/12 upper/lower lip, 13 hair, 14 hat, 15 earring, 16 necklace, 17 neck, 18 cloth. Left is the person's left.
Only the square around the face is parsed; all else is 0.
"""

import argparse
import sys
from pathlib import Path


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
    from fi_jax.errors import UserError

    paths = [Path(image) for image in args.images]
    stems = [path.stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise UserError(f"two pictures would both be written to {args.out}/{twice[0]}.png; parse them apart")
    from fi_jax.cli.runtime import start

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


def _segment(parser, path: Path, args: argparse.Namespace) -> str:
    import io

    import numpy as np
    from PIL import Image

    from fi_jax.faces.face_detector import choose_face, crop_for_model, list_faces, parse_box
    from fi_jax.faces.masks import colourise, write_mask
    from fi_jax.faces.picture_map import faces_in, map_of_picture
    from fi_jax.files import write_bytes
    from fi_jax.labels.face_parts import CLASSES
    from fi_jax.pictures.decode import decode

    image = decode(path)
    note = ""
    if args.box:
        box = parse_box(args.box, *image.shape[:2])
    else:
        faces = faces_in(parser, image)
        box = crop_for_model(choose_face(faces, args.face, str(path)))
        if len(faces) > 1 and not args.face:
            note = f" (the largest of {len(faces)} faces; choose with --face: {list_faces(faces)})"
    mask = map_of_picture(parser, image, box)
    target = Path(args.out) / f"{path.stem}.png"
    write_mask(target, mask)
    if args.colour:
        shown = np.where((mask > 0)[..., None], image * 0.45 + colourise(mask) * 0.55, image).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(shown).save(buffer, "PNG")
        write_bytes(target.with_suffix(".colour.png"), buffer.getvalue())
    count = np.bincount(mask.ravel(), minlength=len(CLASSES))
    present = ", ".join(name for name, pixels in zip(CLASSES[1:], count[1:], strict=True) if pixels)
    return f"{path} -> {target}: {present}{note}"
