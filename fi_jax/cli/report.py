"""Write a report of evaluations and training runs: one HTML page that opens from disk.

Two evaluations give a comparison, with the interval of every difference (paired, over people). Everything comes from predictions.jsonl, metrics.json and the runs' own logs.
"""

import argparse
import shlex
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="RUN|EVAL", help="run folders, or the --out of fi-jax evaluate"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for index.html")
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="show the faces, where predictions.jsonl says they lie (research-only data: do not publish)",
    )
    parser.add_argument(
        "--most", type=int, default=24, help="mistakes shown per data set, task and source (default: 24)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the page."""
    from fi_jax.errors import UserError
    from fi_jax.evaluation.differences import differences
    from fi_jax.evaluation.predictions import read_predictions
    from fi_jax.evaluation.report.cards import thumbnails_from_paths
    from fi_jax.evaluation.report.gather import compare, faces_that_differ, read_inputs
    from fi_jax.evaluation.report.page import LARGEST_PAGE, build_page
    from fi_jax.files import refuse_overwrite, require_writable, write_text

    require_writable(args.out)
    refuse_overwrite([args.out / "index.html"], mark=b"FaceInsight report")
    evaluations, runs = read_inputs(args.inputs, args.most)
    runs = [_with_graph(run) for run in runs]
    flips, pairs, apart = None, [], []
    if len(evaluations) == 2 and all((e.folder / "predictions.jsonl").is_file() for e in evaluations):
        first, second = (e.folder for e in evaluations)
        flips = compare(read_predictions(first), read_predictions(second), args.most)
        pairs = faces_that_differ(first, second)
        apart = differences(read_predictions(first), read_predictions(second))
    command = ["fi-jax", "report", *map(str, args.inputs), "--out", str(args.out)]
    command += ["--pictures"] if args.pictures else []
    command += ["--most", str(args.most)] if args.most != 24 else []
    thumbnails = thumbnails_from_paths if args.pictures else None
    page = build_page(evaluations, runs, flips, thumbnails, shlex.join(command), pairs, apart)
    size = len(page.encode())
    if size > LARGEST_PAGE:
        raise UserError(f"the page would have {size / 1e6:.1f} MB, over 5 MB; show fewer mistakes with --most")
    write_text(args.out / "index.html", page)
    print(f"{args.out / 'index.html'} ({size / 1e6:.1f} MB)")
    return 0


def _with_graph(run):
    """The run with the graph of its model, where it has ended with one."""
    from dataclasses import replace

    from fi_jax.weights.bundle import WEIGHTS, load_model

    if not (run.folder / "model" / WEIGHTS).is_file():
        return run
    model = load_model(run.folder)
    return replace(run, graph=(model.info["labels"], model.graph))
