"""Check a data set, split it, and write it as ArrayRecord shards with counts and a manifest.

On several hosts with one folder, give each `--part I/N` (SLURM: --part $SLURM_PROCID/$SLURM_NTASKS); the last to finish
writes the manifest.
"""

import argparse
import logging
import os
import re
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
    parser.add_argument("--no-masks", action="store_true", help="the same as --parser none")
    parser.add_argument("--faces-per-shard", type=int, default=2048, help="faces in one ArrayRecord file")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one a core)")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="write every N-th shard only, from the I-th")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from fi_jax.cli.runtime import keep_programs
    from fi_jax.config import DataConfig
    from fi_jax.data.datasets import TABLE_PREFIX, open_source
    from fi_jax.data.parsing import make_maps
    from fi_jax.data.prepare import Maps, prepare
    from fi_jax.data.records import Rejected, by_reason
    from fi_jax.errors import UserError
    from fi_jax.faces.map_cache import map_folder

    if args.faces_per_shard < 1:
        raise UserError(f"--faces-per-shard is {args.faces_per_shard}; it must be at least 1")
    part = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", args.part)
    if not part or int(part[1]) >= int(part[2]):
        raise UserError(f"--part is '{args.part}'; it must be I/N with I from 0 to N - 1, 0/4 for the first of four")
    workers = args.workers if args.workers > 0 else len(os.sched_getaffinity(0))
    if args.dataset.startswith(TABLE_PREFIX):
        raise UserError("a table is read as it is; prepare is for released data sets")
    source = open_source(args.dataset, args.data_root)
    maps = None
    if args.parser != "none" and not args.no_masks and any(face.mask is None for face in source.faces):
        keep_programs()
        maps = Maps(map_folder(DataConfig(), args.parser), lambda faces: make_maps(faces, args.parser, workers))
    here = (int(part[1]), int(part[2]))
    manifest, worked = prepare(source, Path(args.out), maps, args.faces_per_shard, here, workers)
    if manifest is None:
        log.info(f"{args.dataset}: part {args.part} is written; the manifest follows when the other parts are")
        return 0
    splits = ", ".join(f"{count} {split}" for split, count in manifest["splits"].items())
    shards = len(manifest["shards"])
    state = "written" if worked else "already there, nothing done"
    log.info(f"{args.dataset}: {manifest['faces']} faces ({splits}) in {shards} shards under {args.out}: {state}")
    for note in manifest["notes"]:
        log.info(f"note: {note}")
    rejected = [Rejected(key, reason) for reason, keys in manifest["rejected"].items() for key in keys]
    for line in by_reason(rejected)[:10]:
        log.info(f"rejected: {line}")
    if manifest["num_rejected"]:
        log.info(f"all {manifest['num_rejected']} rejected rows and files are in {args.out}/manifest.json")
    return 0
