"""Check a data set, split it, and write it as ArrayRecord shards with counts and a manifest."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("dataset", help="celeba, maad_face, fairface, utkface, expw, raf_db, celebamask_hq, ...")
    parser.add_argument("--data-root", default="", help="folder of the release (synthetic_faces needs none)")
    parser.add_argument("--out", required=True, help="folder to write; started again, it continues where it stopped")
    parser.add_argument("--faces-per-shard", type=int, default=2048, help="faces in one ArrayRecord file")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from rich.console import Console

    from fi_jax.data.prepare import prepare
    from fi_jax.data.sources.registry import open_source
    from fi_jax.errors import UserError

    if args.faces_per_shard < 1:
        raise UserError(f"--faces-per-shard is {args.faces_per_shard}; it must be at least 1")
    source = open_source(args.dataset, args.data_root)
    manifest, worked = prepare(source, Path(args.out), faces_per_shard=args.faces_per_shard)
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
