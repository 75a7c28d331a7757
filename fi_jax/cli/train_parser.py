"""Train the face parser on CelebAMask-HQ, with cross-validation, and write it with its scores."""

import argparse
from dataclasses import replace
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--data-root", required=True, help="folder of CelebAMask-HQ, as released or prepared")
    parser.add_argument("--out", required=True, help="folder to write: weights.safetensors and parser.json")
    parser.add_argument(
        "--only-validate",
        action="store_true",
        help="cross-validate as the parser in --out was trained, and add the scores to it; its weights stay",
    )
    parser.add_argument("--folds", type=int, default=5, help="cross-validation folds; 0 for none (default: 5)")
    parser.add_argument("--steps", type=int, help="steps of every training (default: 5000, or as the parser in --out)")
    parser.add_argument(
        "--size", type=int, help="side of the pictures it reads, pixels (default: 192, or as the parser in --out)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="pictures a step (default: 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--precision", choices=("int8", "float16", "float32"), default="int8", help="of the weights file"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from fi_jax.data.datasets import open_source
    from fi_jax.errors import UserError
    from fi_jax.files import require_new

    if args.folds == 1 or args.folds < 0 or (args.only_validate and not args.folds):
        raise UserError(f"--folds is {args.folds}; it must be at least 2 (or 0, for no cross-validation)")
    if not (Path(args.out) / "parser.json").exists():
        require_new(Path(args.out))
    records = open_source("celebamask_hq", args.data_root).records("all")
    from fi_jax.cli.runtime import start

    start()
    from fi_jax.faces.parser import describe, load_parser, save_parser
    from fi_jax.faces.parser_crossval import cross_validate, make_trainer, read_pairs, report, score, train
    from fi_jax.faces.parser_training import ParserTraining

    settings = {"batch_size": args.batch_size, "seed": args.seed}
    trained = load_parser(args.out) if args.only_validate else None
    if trained:
        made = trained.info["training"]
        settings = {name: made[name] for name in (*settings, "steps", "input_size", "source_size")}
    given = {"steps": args.steps, "input_size": args.size, "source_size": args.size and args.size * 4 // 3}
    training = ParserTraining(**settings | {name: value for name, value in given.items() if value is not None})
    pairs = read_pairs(records, training.source_size)
    trainer = make_trainer(pairs, training)
    scores = cross_validate(trainer, pairs, args.folds) if args.folds else {}
    parser = trained or train(trainer, pairs)
    parser = replace(parser, info=parser.info | scores)
    if trained:
        describe(Path(args.out), parser)
    else:
        save_parser(Path(args.out), parser, args.precision)
    if scores:
        print(report(scores["cross_validation"]))
    # What was written is read back: the rounding of the weights is part of the model.
    stored = score(load_parser(args.out), pairs)
    print(f"as stored, on its own training pictures: mean IoU {stored['mean']:.1%}")
    print(f"parser: {args.out}")
    return 0
