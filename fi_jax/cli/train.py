"""Train a config, resuming by itself from the last checkpoint of the run.

Any field of the config is a flag: --train.steps 100 --data.batch-size 32. The run's folder is runs/NAME.
"""

import argparse
from pathlib import Path

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments; dotted overrides are left to the config."""
    parser.add_argument("config", help="a file, or a name under configs/")
    parser.add_argument("--runs", default="runs", help="folder of all runs (default: runs)")
    parser.add_argument("--limit", type=int, metavar="N", help="only N faces of each set (as --data.limit N)")
    parser.add_argument(
        "--fields", action="store_true", help="list every field that can be overridden, with its value, and stop"
    )
    parser.add_argument(
        "--finish", action="store_true", help="end a stopped run at its last checkpoint: write its model, train no more"
    )
    parser.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="resume although the faces are not those that the checkpoint was trained on",
    )


def run(args: argparse.Namespace) -> int:
    """Trains; the exit status is 75 when the scheduler should start the job again."""
    from fi_jax.cli.configs import load_config
    from fi_jax.config_tree import flat_fields

    limit = [] if args.limit is None else ["--data.limit", str(args.limit)]
    config = load_config(args.config, [*args.overrides, *limit])
    if args.fields:
        for name, value in flat_fields(config):
            print(f"--{name} {value}")
        return 0
    from fi_jax.cli.runtime import start

    hosts = start()
    from fi_jax.experiments.training import train_run

    return train_run(
        config, Path(args.runs) / config.name, hosts, finish=args.finish, accept_changed_data=args.accept_changed_data
    )
