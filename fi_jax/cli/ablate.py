"""Make an ablation table: what segmentation, CCM, LCM and their settings are worth, over several seeds.

Every variant is trained with every seed and judged by the protocols. Variants that differ in numbers (τ, ω, the graph,
a loss weight of 0, the seed) train together in one program. With --frozen, the encoders of a trained model stay as they
are: their features are computed once, and only alignment head and graph network are trained, which takes minutes.
--table asks one question of docs/ablation.md: few_labels, noisy_labels, strength and left_out train heads over features
that no label has shaped (the config is not used, the prompts are those of --frozen or nano); missing and llm are whole trainings.

  fi-jax ablate tiny --seeds 0 1 --only no_ccm no_lcm
  fi-jax ablate nano --table few_labels --dataset celeba --data-root data/celeba --seeds 0 1 2 3 4
  fi-jax ablate nano --frozen nano --dataset utkface expw --data-root data/utkface data/expw --out out/ablation
"""

import argparse
import json
import logging
import shlex
import sys
from pathlib import Path

TAKES_OVERRIDES = True
_TABLES = ("few_labels", "noisy_labels", "strength", "left_out", "missing", "llm")
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments; dotted overrides of the config are allowed."""
    parser.add_argument("config", help="a file, or a name under configs/: the full model and how it is trained")
    parser.add_argument("--frozen", metavar="RUN", help="keep the encoders of this run or bundled model as they are")
    parser.add_argument(
        "--dataset", nargs="+", metavar="NAME", help="train on these and judge by them (default: the config's)"
    )
    parser.add_argument("--data-root", nargs="+", metavar="DIR", help="their folders, in the same order")
    parser.add_argument("--split", default="test", choices=("val", "test"), help="judged faces (default: test)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="these variants beside the full model")
    parser.add_argument("--table", choices=_TABLES, help="one question's variants, in place of --only")
    parser.add_argument("--list", action="store_true", help="list the variants and stop")
    parser.add_argument("--limit", type=int, default=0, help="judge by N faces of each set (0: all)")
    parser.add_argument("--train-limit", type=int, default=0, help="train on N faces of each set (as --data.limit N)")
    parser.add_argument("--head-only", action="store_true", help="judge by the alignment head alone")
    parser.add_argument("--batch-size", type=int, default=8, help="faces judged at once (default: 8)")
    parser.add_argument(
        "--members", type=int, default=16, metavar="N", help="most members of one program (default: 16)"
    )
    # Its name until 0.1; `fi-jax bench --together` is something else.
    parser.add_argument("--together", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", metavar="DIR", help="folder of the study (default: out/ablation/NAME)")


def run(args: argparse.Namespace) -> int:
    """Runs what is missing and prints the table."""
    from dataclasses import replace

    from fi_jax.cli.configs import load_config
    from fi_jax.cli.runtime import start
    from fi_jax.config import SourceConfig
    from fi_jax.errors import UserError

    if args.together is not None:
        log.warning("--together N is now --members N")
        args.members = args.together
    if args.members < 1 or args.limit < 0 or args.train_limit < 0:
        raise UserError("--members must be at least 1, and --limit and --train-limit not negative")
    limit = ["--data.limit", str(args.train_limit)] if args.train_limit else []
    config = load_config(args.config, [*args.overrides, *limit])
    if args.data_root and not args.dataset or args.dataset and len(args.dataset) != len(args.data_root or []):
        raise UserError("--dataset and --data-root go together, one folder a data set, in the same order")
    if args.dataset:
        # What the config says of a set besides its folder stays (how often it is repeated).
        known = {source.name: source for source in config.data.sources}
        sources = tuple(
            replace(known.get(name, SourceConfig(name)), root=root)
            for name, root in zip(args.dataset, args.data_root, strict=True)
        )
        config = replace(config, data=replace(config.data, sources=sources))
    hosts = start()
    from fi_jax.evaluation.parts import EvaluationOptions
    from fi_jax.experiments.ablation import Study, points_of, run_study
    from fi_jax.experiments.frozen import frozen_config
    from fi_jax.experiments.variants import TABLES, chosen, of_table
    from fi_jax.weights.bundle import load_model

    table = TABLES[args.table] if args.table else None
    if table and args.only:
        raise UserError("--table names its variants itself; leave out --only")
    if table and table.conditions and not args.list:
        return _few_labels(args)
    base = load_model(args.frozen) if args.frozen else None
    if base is not None:
        config = frozen_config(config, base)
    variants = of_table(config, table) if table else chosen(config, args.only, base is not None)
    if args.list:
        for variant, _ in variants:
            print(f"{variant.name:<16} {variant.title:<36} {dict(variant.fields) or ''}")
        return 0
    options = EvaluationOptions(
        args.split, args.limit, args.batch_size, args.head_only, mask_cache=config.data.mask_cache
    )
    sets = tuple((source.name, source.root) for source in config.data.sources)
    out = Path(args.out or Path("out", "ablation", config.name))
    study = Study(out, sets, options, args.members, base)
    results, status = run_study(study, points_of(variants, args.seeds), hosts)
    if status:
        return status
    _write(out, results, args)
    return 0


def _few_labels(args: argparse.Namespace) -> int:
    """Runs a table over label-free features, and writes it."""
    from fi_jax.errors import UserError
    from fi_jax.experiments.few_labels import as_table, run_table
    from fi_jax.experiments.variants import TABLES
    from fi_jax.files import write_text
    from fi_jax.weights.bundle import load_model

    if not args.dataset or len(args.dataset) > 1:
        raise UserError(f"--table {args.table} needs one data set: --dataset celeba --data-root DIR")
    out, table = Path(args.out or Path("out", "ablation", args.table)), TABLES[args.table]
    model = load_model(args.frozen or "nano")
    prompts = dict(zip(model.info["labels"], model.prompts, strict=True))
    result = run_table(table, args.dataset[0], Path(args.data_root[0]), out, prompts, args.seeds, args.split)
    shown = as_table(result, table)
    write_text(out / "few_labels.md", shown.to_markdown())
    shown.show()
    log.info(f"few_labels.json, few_labels.md and every face's scores are in {out}")
    return 0


def _write(out: Path, results: list[dict], args: argparse.Namespace) -> None:
    from fi_jax.evaluation.ablation_table import ablation_tables, flat_ablation_table
    from fi_jax.files import write_text

    notes = []
    if args.frozen:
        notes.append(
            f"Encoders of {args.frozen}, frozen and trained with all modules on: only head and graph network are each variant's own."
        )
    tables = list(ablation_tables(results, *notes))
    study = {"command": shlex.join(["fi-jax", *sys.argv[1:]]), "split": args.split, "points": results}
    write_text(out / "ablation.json", json.dumps(study, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "ablation.csv", flat_ablation_table(results).to_csv())
    write_text(out / "ablation.md", "\n".join(table.to_markdown() for table in tables))
    for table in tables:
        table.show()
    print(f"ablation.csv, ablation.md and ablation.json are in {out}")
