"""Evaluate a model on data sets: one prediction line a face and question, metrics with intervals, and a table.

Both settings: a set that a model was trained on counts as fine-tuned, any other as training-free. A cell that no model
given may fill stays blank; --leave-one-out trains the model that may. What is done already in --out is not done again.

  fi-jax evaluate nano --dataset utkface celeba --data-root data/utkface data/celeba --out out/nano
  fi-jax evaluate nano --setting both --leave-one-out
  fi-jax evaluate --model hf:llava-hf/llava-1.5-7b-hf --dataset utkface --data-root data/utkface
"""

import argparse
import shlex
import sys
from pathlib import Path

TAKES_OVERRIDES = True


# What each file that is written holds near its start: others of the same name are never replaced.
_OURS = {
    "predictions.jsonl": b'"seen": ',
    "metrics.json": b'"unit": "face"',
    "table.csv": b"dataset,task,metric,",
    "table.md": b"| data set | task | metric |",
    "table.json": b'"headline"',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments; dotted overrides of the config are allowed."""
    parser.add_argument(
        "config",
        nargs="?",
        help="a file, or a name under configs/; says which data sets where --dataset does not (not needed with --model)",
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        metavar="RUN",
        help="run folders or bundled models (default: runs/NAME, else the bundled model of that name); "
        "of several, the first that may fills a cell",
    )
    parser.add_argument(
        "--model", metavar="hf:NAME", help="any image-text model of Hugging Face instead, or hf:FOLDER (needs torch)"
    )
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="data sets to evaluate on")
    parser.add_argument("--data-root", nargs="+", metavar="DIR", help="their folders, in the same order")
    parser.add_argument("--split", default="test", help="train, val, test or all (default: test)")
    parser.add_argument("--out", metavar="DIR", help="where predictions and tables go (default: out/NAME)")
    parser.add_argument(
        "--limit", type=int, default=0, help="only N faces of each set, chosen by the hash of their names (0: all)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="faces at once (default: 8)")
    parser.add_argument("--head-only", action="store_true", help="only the alignment head answers; the LLM is not run")
    parser.add_argument(
        "--free-form",
        action="store_true",
        help="let the LLM also answer in its own words, and read the answer from them",
    )
    parser.add_argument(
        "--all-questions",
        action="store_true",
        help="ask also what a set does not annotate: the violation rate is then over all rules that the model can break",
    )
    parser.add_argument(
        "--setting",
        choices=("both", "fine-tuned", "training-free"),
        default="both",
        help="which cells of the table to fill",
    )
    parser.add_argument(
        "--leave-one-out",
        action="store_true",
        help="train CONFIG without each set whose training-free cell would stay blank, and fill it",
    )
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where --leave-one-out trains (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints the table."""
    from fi_jax.cli.configs import load_config
    from fi_jax.cli.runtime import start
    from fi_jax.files import refuse_overwrite, require_writable

    _check(args)
    config = load_config(args.config, args.overrides) if args.config else None
    sets = _sets(args, config)
    out = Path(args.out or Path("out", config.name if config else Path(args.model or args.checkpoint[0]).name))
    require_writable(out)
    for name, mark in _OURS.items():
        refuse_overwrite([out / name], mark=mark)
    hosts = start()
    from fi_jax.data.datasets import find_dataset
    from fi_jax.evaluation.parts import EvaluationOptions
    from fi_jax.evaluation.results import cells_of
    from fi_jax.evaluation.results_tables import notes_below, results_table
    from fi_jax.evaluation.titles import SETTINGS
    from fi_jax.experiments.judging import fill_cells, write_results

    models = _models(args, config)
    settings = SETTINGS if args.setting == "both" else (args.setting,)
    if args.leave_one_out:
        status = _leave_one_out(args, config, [name for name, _ in sets], settings, models, hosts)
        if status:
            return status
    learnt = {source for model in models for source in model.sources}
    if args.split in ("train", "all") and any(find_dataset(name).name in learnt for name, _ in sets):
        print(f"fi-jax: split '{args.split}' holds faces that the model learnt from", file=sys.stderr)
    mask_cache = config.data.mask_cache if config else ""
    options = EvaluationOptions(
        args.split, args.limit, args.batch_size, args.head_only, args.free_form, args.all_questions, mask_cache
    )
    cells = fill_cells(models, sets, settings, options, out)
    summary = write_results(out, cells, models, options, shlex.join(["fi-jax", *sys.argv[1:]]))
    results_table(cells_of(summary, headlines_only=True)).show()
    files = f"predictions.jsonl, metrics.json, table.csv, table.md and table.json are in {out}"
    print(*notes_below(summary), files, sep="\n")
    return 0


def _check(args: argparse.Namespace) -> None:
    from fi_jax.errors import UserError

    if args.model and not args.model.startswith("hf:"):
        raise UserError(
            f"--model is '{args.model}'; it takes hf:NAME or hf:FOLDER (--checkpoint takes runs of our own)"
        )
    if args.model and (args.checkpoint or args.leave_one_out):
        raise UserError("--model goes with neither --checkpoint nor --leave-one-out")
    if args.model and args.head_only:
        raise UserError("another model has no alignment head; leave out --head-only")
    if not args.model and not args.config and not args.checkpoint:
        raise UserError("evaluate needs CONFIG, a file or a name under configs/ (or --checkpoint RUN, --model hf:NAME)")
    if not args.config and not (args.dataset and args.data_root):
        raise UserError("without CONFIG, give --dataset and --data-root")
    if args.limit < 0 or args.batch_size < 1:
        raise UserError("--limit must not be negative, and --batch-size at least 1")


def _sets(args: argparse.Namespace, config) -> list[tuple[str, str]]:
    from fi_jax.data.datasets import TABLE_PREFIX
    from fi_jax.errors import UserError

    configured = {source.name: source.root for source in config.data.sources} if config else {}
    names = args.dataset or list(configured)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"data set '{twice[0]}' is named twice after --dataset")
    if not args.data_root:
        # A schema says where its pictures are.
        configured |= {name: "" for name in names if name.startswith(TABLE_PREFIX)}
        missing = [name for name in names if name not in configured]
        if missing:
            raise UserError(f"--dataset {missing[0]} needs --data-root: the config does not say where it is")
        return [(name, configured[name]) for name in names]
    if len(args.data_root) != len(names):
        raise UserError(
            f"{len(names)} data sets but {len(args.data_root)} folders after --data-root; give one each, in order"
        )
    return list(zip(names, args.data_root, strict=True))


def _models(args: argparse.Namespace, config) -> list:
    from fi_jax.experiments.candidates import other_candidate, our_candidate

    if args.model:
        return [other_candidate(args.model)]
    default = f"runs/{config.name}" if Path("runs", config.name, "model").is_dir() else config.name
    return [our_candidate(name) for name in args.checkpoint or [default]]


def _leave_one_out(args: argparse.Namespace, config, names: list[str], settings, models: list, hosts) -> int:
    """Trains and adds the models that may fill the blank training-free cells."""
    from fi_jax.evaluation.cells import plan_cells
    from fi_jax.experiments.candidates import our_candidate
    from fi_jax.experiments.leave_one_out import stages_without, train_without

    _, blank = plan_cells(names, [model.sources for model in models], settings)
    # All are laid out before the first is trained: a mistake is told at once.
    wanted = [
        stages_without(config, name, Path(args.runs), lambda start: _stage(start, config))
        for name, setting in blank
        if setting == "training-free"
    ]
    for stages in wanted:
        status = train_without(stages, hosts)
        if status:
            return status
        models.append(our_candidate(str(stages[-1][1])))
    return 0


def _stage(start: str, config):
    """The config of an earlier stage: of its run or bundled model, else of that name under configs/; with our data."""
    from dataclasses import replace

    from fi_jax.cli.configs import load_config
    from fi_jax.errors import UserError
    from fi_jax.weights.bundle import CONFIG, find_model, read_config

    try:
        return read_config(find_model(start) / CONFIG)
    except UserError:
        stage = load_config(Path(start).name)
        return replace(stage, data=replace(stage.data, sources=config.data.sources))
