"""Train the face parser on CelebAMask-HQ, with cross-validation, and write it with its scores."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--data-root", required=True, help="folder of CelebAMask-HQ, as released or prepared")
    parser.add_argument("--out", required=True, help="folder to write: weights.safetensors and parser.json")
    parser.add_argument("--folds", type=int, default=5, help="cross-validation folds; 0 for none (default: 5)")
    parser.add_argument("--steps", type=int, default=5000, help="steps of every training (default: 5000)")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures a step (default: 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--precision", choices=("int8", "float16", "float32"), default="int8", help="of the weights file"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from fi_jax.data.sources.registry import open_source
    from fi_jax.errors import UserError

    if args.folds == 1 or args.folds < 0:
        raise UserError(f"--folds is {args.folds}; it must be 0 (no cross-validation) or at least 2")
    records = open_source("celebamask_hq", args.data_root).records("all")
    from fi_jax.cli.runtime import start

    start()
    from fi_jax.inference.parser import load_parser, save_parser
    from fi_jax.training.parser import ParserTraining
    from fi_jax.training.parser_crossval import read_pairs, report, score, train_and_validate

    training = ParserTraining(steps=args.steps, batch_size=args.batch_size, seed=args.seed)
    pairs = read_pairs(records, training.source_size)
    result = train_and_validate(pairs, training, args.folds, lambda text: print(text, flush=True))
    save_parser(Path(args.out), result, args.precision)
    print(report(result.info))
    # What was written is read back: the rounding of the weights is part of the model.
    stored = score(load_parser(args.out), pairs)
    print(f"as stored, on its own training pictures: mean IoU {stored['mean']:.1%}")
    print(f"parser: {args.out}")
    return 0
