"""Check a data set, split it, and write it as ArrayRecord shards with counts and a manifest."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("dataset", help="celeba, maad_face, fairface, utkface, expw, raf_db, celebamask_hq, ...")
    parser.add_argument("--data-root", default="", help="folder of the release (synthetic_faces needs none)")
    parser.add_argument("--out", required=True, help="folder to write; started again, it continues where it stopped")
    parser.add_argument(
        "--parser", default="bundled", help="makes maps for sets without: bundled, a folder, a Hub name, or none"
    )
    parser.add_argument("--faces-per-shard", type=int, default=2048, help="faces in one ArrayRecord file")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from rich.console import Console

    from fi_jax.data.datasets import open_source
    from fi_jax.data.prepare import prepare
    from fi_jax.errors import UserError

    if args.faces_per_shard < 1:
        raise UserError(f"--faces-per-shard is {args.faces_per_shard}; it must be at least 1")
    source = open_source(args.dataset, args.data_root)
    wanted = args.parser != "none" and any(face.mask is None for face in source.records("all"))
    maps = _map_maker(args.parser) if wanted else None
    manifest, worked = prepare(source, Path(args.out), maps, args.faces_per_shard)
    console = Console(soft_wrap=True, highlight=False)
    splits = ", ".join(f"{count} {split}" for split, count in manifest["splits"].items())
    shards = len(manifest["shards"])
    state = "written" if worked else "already there, nothing done"
    console.print(f"{args.dataset}: {manifest['faces']} faces ({splits}) in {shards} shards under {args.out}: {state}")
    for note in manifest["notes"]:
        console.print(f"note: {note}", markup=False)
    for reason, keys in list(manifest["rejected"].items())[:10]:
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        console.print(f"rejected: {keys[0]}{more}: {reason}", markup=False)
    if manifest["num_rejected"]:
        console.print(f"all {manifest['num_rejected']} rejected rows and files are in {args.out}/manifest.json")
    return 0


def _map_maker(name: str):
    """Returns the face parser `name` as the maker of maps."""
    import hashlib

    import jax
    import numpy as np

    from fi_jax.data.prepare import MapMaker
    from fi_jax.faces.masks import encode_mask
    from fi_jax.faces.parser import load_parser, parse_faces

    parser = load_parser(name)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(parser.variables):
        digest.update(np.asarray(leaf).tobytes())

    def make(faces) -> list[bytes]:
        found = [mask for _, mask in parse_faces(parser, faces)]
        encoded = []
        for mask in found:
            # Every picture was decoded before, so this one vanished meanwhile.
            if isinstance(mask, Exception):
                raise mask
            encoded.append(encode_mask(mask))
        return encoded

    return MapMaker(digest.hexdigest(), make)
