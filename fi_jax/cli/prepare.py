"""Check a data set, split it, and write it as ArrayRecord shards with counts and a manifest."""

import argparse
import logging
from pathlib import Path

log = logging.getLogger(__name__)


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
    from fi_jax.config import DataConfig
    from fi_jax.data.datasets import open_source
    from fi_jax.data.prepare import prepare
    from fi_jax.errors import UserError
    from fi_jax.faces.map_cache import with_maps

    if args.faces_per_shard < 1:
        raise UserError(f"--faces-per-shard is {args.faces_per_shard}; it must be at least 1")
    source = open_source(args.dataset, args.data_root)
    maps = None
    if args.parser != "none" and any(face.mask is None for face in source.faces):
        maps = Path(with_maps(source.faces, DataConfig(), args.parser).mask_cache)
    manifest, worked = prepare(source, Path(args.out), maps, args.faces_per_shard)
    splits = ", ".join(f"{count} {split}" for split, count in manifest["splits"].items())
    shards = len(manifest["shards"])
    state = "written" if worked else "already there, nothing done"
    log.info(f"{args.dataset}: {manifest['faces']} faces ({splits}) in {shards} shards under {args.out}: {state}")
    for note in manifest["notes"]:
        log.info(f"note: {note}")
    for reason, keys in sorted(manifest["rejected"].items(), key=lambda item: -len(item[1]))[:10]:
        log.info(f"rejected: {keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}: {reason}")
    if manifest["num_rejected"]:
        log.info(f"all {manifest['num_rejected']} rejected rows and files are in {args.out}/manifest.json")
    return 0
