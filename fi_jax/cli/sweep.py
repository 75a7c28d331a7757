"""Run a sweep: many configs, here or on SLURM; leaves a table, a plot and the best config.

SWEEP is a Python file with one function, sweep() -> fi_jax.experiments.expressions.Sweep. Start the same command again to
go on after an interruption: finished points are not run twice.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("sweep", metavar="SWEEP", help="a Python file with a function sweep()")
    parser.add_argument("--out", help="folder of the sweep (default: runs/sweeps/NAME OF THE FILE)")
    parser.add_argument(
        "--where",
        choices=("here", "members", "slurm"),
        default="here",
        help="here: processes; members: all in one program; slurm: a job array",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--gpus", default="", help="GPUs to share out, one a run, as in 0,1,2,3 (sets --jobs)")
    parser.add_argument("--retry-failed", action="store_true", help="run failed points again")
    parser.add_argument("--dry-run", action="store_true", help="list the points and stop")
    parser.add_argument("--summary", action="store_true", help="write the table of what is there and stop")
    parser.add_argument("--detach", action="store_true", help="with slurm: submit and return; --summary collects later")
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a submitit parameter, e.g. slurm_partition=gpu timeout_min=600 (repeat)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the sweep; the exit status is 1 when a point failed, 75 when it was interrupted and can go on."""
    from fi_jax.cli.configs import load_config
    from fi_jax.errors import UserError
    from fi_jax.experiments.configs import made_by
    from fi_jax.experiments.expressions import Sweep
    from fi_jax.experiments.program import Settings, run_sweep

    if args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; it must be at least 1")
    gpus = tuple(gpu for gpu in args.gpus.split(",") if gpu)
    sweep = made_by(Path(args.sweep), "sweep", Sweep)
    settings = Settings(
        where=args.where,
        parallel=len(gpus) or args.jobs,
        gpus=gpus,
        retry_failed=args.retry_failed,
        dry_run=args.dry_run,
        summary_only=args.summary,
        detach=args.detach,
        slurm=_pairs(args.slurm),
    )
    if args.where == "members":
        from fi_jax.cli.runtime import start

        start()
    folder = Path(args.out) if args.out else Path("runs", "sweeps", Path(args.sweep).stem)
    return run_sweep(sweep, load_config(sweep.config, list(sweep.overrides)), folder, settings)


def _pairs(texts: list[str]) -> dict[str, str | int]:
    """Reads NAME=VALUE pairs; whole numbers become numbers, as submitit wants them."""
    from fi_jax.errors import UserError

    pairs: dict[str, str | int] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--slurm '{text}' is not NAME=VALUE")
        pairs[name] = int(value) if value.isdigit() else value
    return pairs
