"""Evaluate a model on data sets: one prediction line a face and question, metrics with intervals, and a table.

Both settings: a set that the model was trained on counts as fine-tuned, any other as training-free. What is done
already in --out is not done again.

  fi-jax evaluate nano --dataset utkface celeba --data-root data/utkface data/celeba --out out/nano
"""

import argparse
import hashlib
import json
import shlex
import sys
from pathlib import Path

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments; dotted overrides of the config's data section are allowed."""
    parser.add_argument(
        "config", help="a file, or a name under configs/; says which data sets where --dataset does not"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="RUN",
        help="a run folder or a bundled model (default: runs/NAME, else the bundled model of that name)",
    )
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="data sets to evaluate on")
    parser.add_argument("--data-root", nargs="+", metavar="DIR", help="their folders, in the same order")
    parser.add_argument("--split", default="test", help="train, val, test or all (default: test)")
    parser.add_argument("--out", metavar="DIR", help="where predictions.jsonl and metrics.json go (default: out/NAME)")
    parser.add_argument("--limit", type=int, default=0, help="only the first N faces of each set (0: all)")
    parser.add_argument("--batch-size", type=int, default=8, help="faces at once (default: 8)")
    parser.add_argument("--head-only", action="store_true", help="only the alignment head answers; the LLM is not run")
    parser.add_argument(
        "--setting",
        choices=("both", "fine-tuned", "training-free"),
        default="both",
        help="which cells of the table to fill",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints the table."""
    from fi_jax.cli.configs import load_config
    from fi_jax.cli.runtime import start
    from fi_jax.config import to_dict

    config = load_config(args.config, args.overrides)
    sets = _sets(args, config)
    start()
    from fi_jax.evaluation.predictions import read_predictions, write_predictions
    from fi_jax.evaluation.summarise import summarise, write_summary
    from fi_jax.evaluation.tables import consistent_rows, print_table, render, to_csv, to_markdown
    from fi_jax.inference.answerer import load_answerer
    from fi_jax.weights.bundle import find_model, load_model

    folder = find_model(
        args.checkpoint or (f"runs/{config.name}" if Path("runs", config.name, "model").is_dir() else config.name)
    )
    model = load_model(folder)
    out = Path(args.out or Path("out", config.name))
    wanted = []
    for name, root in sets:
        seen = name in model.info.get("sources", [])
        if args.setting in ("both", "fine-tuned" if seen else "training-free"):
            wanted.append((name, root, seen))
    fingerprint = _fingerprint(folder, args)
    answerer = None
    baselines: dict[str, dict] = {}
    parts = []
    for name, root, seen in wanted:
        part = out / "parts" / f"{name}-{args.split}-{fingerprint}.jsonl"
        parts.append(part)
        baseline_file = part.with_suffix(".baseline.json")
        if not part.is_file() or not baseline_file.is_file():
            answerer = answerer or load_answerer(model)
            baselines[name] = _evaluate_set(answerer, name, root, seen, config, args, part)
            baseline_file.write_text(json.dumps(baselines[name]))
        baselines[name] = json.loads(baseline_file.read_text())
    write_predictions(out / "predictions.jsonl", (line for part in parts for line in read_predictions(part)))
    meta = {
        "model": str(args.checkpoint or config.name),
        "fingerprint": fingerprint,
        "split": args.split,
        "trained_on": model.info.get("sources", []),
        "seen": {name: seen for name, _, seen in wanted},
        "limit": args.limit,
        "command": shlex.join(["fi-jax", *sys.argv[1:]]),
        "config": to_dict(model.config),
    }
    estimator = model.info.get("age_estimator", "expected")
    summary = summarise(read_predictions(out / "predictions.jsonl"), baselines, estimator=estimator, meta=meta)
    write_summary(out / "metrics.json", summary)
    rows = render(summary)
    (out / "table.csv").write_text(to_csv(rows))
    (out / "table.md").write_text(to_markdown(rows))
    print_table(render(summary, headlines_only=True))
    for line in consistent_rows(summary):
        print(line)
    print(f"predictions.jsonl, metrics.json, table.csv and table.md are in {out}")
    return 0


def _sets(args: argparse.Namespace, config) -> list[tuple[str, str]]:
    from fi_jax.errors import UserError

    configured = {source.name: source.root for source in config.data.sources}
    names = args.dataset or list(configured)
    if not args.data_root:
        missing = [name for name in names if name not in configured]
        if missing:
            raise UserError(f"--dataset {missing[0]} needs --data-root: the config does not say where it is")
        return [(name, configured[name]) for name in names]
    if len(args.data_root) != len(names):
        raise UserError(
            f"{len(names)} data sets but {len(args.data_root)} folders after --data-root; give one each, in order"
        )
    return list(zip(names, args.data_root, strict=True))


def _fingerprint(folder: Path, args: argparse.Namespace) -> str:
    """What predictions depend on: the weights and the options that change them."""
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes())
    digest.update((folder / "model.json").read_bytes())
    digest.update(repr((args.limit, args.head_only)).encode())
    return digest.hexdigest()[:12]


def _evaluate_set(answerer, name: str, root: str, seen: bool, config, args, part: Path) -> dict:
    from dataclasses import replace

    from fi_jax.data.pipeline import open_dataset
    from fi_jax.data.progress import progress_bar
    from fi_jax.data.sources.registry import open_source
    from fi_jax.errors import UserError
    from fi_jax.evaluation.answering import predict
    from fi_jax.evaluation.predictions import true_answer, write_predictions
    from fi_jax.evaluation.summarise import train_baseline
    from fi_jax.inference.maps import with_maps
    from fi_jax.labels.question_bank import questions_of

    source = open_source(name, root)
    records = source.records(args.split)
    if not records:
        raise UserError(f"{name} at '{root}' has no faces in split '{args.split}'")
    records = records[: args.limit] if args.limit else records
    questions = answerer.answerable(questions_of(name))
    if not questions:
        raise UserError(
            f"the model's vocabulary '{answerer.vocabulary.name}' knows no answer to any question about {name}"
        )
    data = replace(answerer.config.data, mask_cache=config.data.mask_cache, cache_in_memory=False)
    if answerer.config.model.use_segmentation:
        data = with_maps(records, data, answerer.config.weights.parser)
    with progress_bar(f"answering about {name}", len(records)) as advance:
        lines = predict(
            answerer,
            records,
            open_dataset(records, data, answerer.vocabulary),
            questions,
            batch_size=min(args.batch_size, len(records)),
            by_llm=answerer.speaks and not args.head_only,
            seen=seen,
            estimator=answerer.info.get("age_estimator", "expected"),
            advance=advance,
        )
        write_predictions(part, lines)
    truths = ({q.name: true_answer(q, r.labels, r.age) for q in questions} for r in source.records("train"))
    return train_baseline(truths)
