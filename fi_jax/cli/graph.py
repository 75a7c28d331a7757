"""Compute, save and draw the co-occurrence graph of the annotations of data sets (C and Ĉ).

CelebA needs its annotation files alone, no picture; splits are its official partition. Other sets are read as for
training; with --countable, CelebA and FairFace by their annotation files, as training counts them: never a face that is
evaluated. Several sets are counted together, and --bridges adds what connects them. Leaves graph.npz (counts, P, C, Ĉ),
graph.json and graph.png; with --rules also rules.md: every declared rule and how often the annotations break it.
"""

import argparse
import json
import logging
from pathlib import Path

log = logging.getLogger(__name__)

GRAPHS = ("cooccurrence", "lift", "shuffled")
SPLITS = ("train", "val", "test", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("dataset", metavar="DATASET", nargs="*", default=["celeba"], help="data sets (default: celeba)")
    parser.add_argument(
        "--data-root",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="their releases, as downloaded, in order",
    )
    parser.add_argument("--countable", action="store_true", help="the faces that training may count, by label files")
    parser.add_argument("--bridges", action="store_true", help="also pairs that labels/bridges.py declares, in red")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--split", choices=SPLITS, default="train", help="faces to count (default: train)")
    parser.add_argument(
        "--vocabulary", default=None, help="labels to count (default: the data set's own; of several, faces)"
    )
    parser.add_argument("--tau", type=float, default=0.4, help="threshold on p (default: 0.4)")
    parser.add_argument("--omega", type=float, default=0.2, help="weight of the neighbours (default: 0.2)")
    parser.add_argument("--graph", choices=GRAPHS, default="cooccurrence", help="kind of graph (default: cooccurrence)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffled graph (default: 0)")
    parser.add_argument("--rules", action="store_true", help="also write rules.md, measured on the same faces")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    import numpy as np

    from fi_jax.config import KnowledgeConfig
    from fi_jax.data.datasets import find_dataset
    from fi_jax.errors import UserError
    from fi_jax.evaluation.figures import MARK
    from fi_jax.files import refuse_overwrite, write_bytes, write_text
    from fi_jax.knowledge import correlation
    from fi_jax.knowledge.graph_file import graph_bytes
    from fi_jax.knowledge.graph_report import summarise
    from fi_jax.labels.registry import vocabulary

    # What each file of ours holds near its start.
    marks = {
        "graph.npz": b"names.npy",
        "graph.json": b'"omega"',
        "graph.png": MARK,
        "rules.md": b"fi-jax graph",
    }
    for name, mark in marks.items():
        refuse_overwrite([args.out / name], mark=mark)
    config = KnowledgeConfig(tau=args.tau, omega=args.omega, graph=args.graph)
    datasets, said = [find_dataset(name) for name in args.dataset], ", ".join(args.dataset)
    if len(datasets) != len(args.data_root):
        raise UserError(
            f"{len(datasets)} data sets, {len(args.data_root)} folders after --data-root; give one for each"
        )
    default = datasets[0].vocabulary if len(datasets) == 1 else vocabulary("faces")
    vocab = vocabulary(args.vocabulary) if args.vocabulary else default
    read = [_annotations(*pair, args, vocab) for pair in zip(datasets, args.data_root, strict=True)]
    labels, known = (np.concatenate(parts) for parts in zip(*read, strict=True))
    counted = counts = correlation.update(correlation.empty(len(vocab)), labels, known)
    if args.bridges:
        counts = correlation.with_bridges(counts, vocab)
    p, lift = correlation.conditional(counts), correlation.lift(counts)
    c = correlation.build_adjacency(counts, config, args.seed)
    graph = correlation.reweight(c, config.omega).astype(np.float32)
    summary = summarise(vocab.names, p, c, lift)
    settings = {
        "dataset": said,
        "split": args.split,
        "vocabulary": vocab.name,
        "faces": len(labels),
        "graph": args.graph,
        "tau": args.tau,
        "omega": args.omega,
        "seed": args.seed,
    }
    write_bytes(args.out / "graph.npz", graph_bytes(vocab.names, counts, p=p, c=c, graph=graph))
    write_text(args.out / "graph.json", json.dumps({**settings, **summary, "labels": vocab.names}, indent=1))
    title = f"{said}, {args.split}: {len(labels):,} faces, {args.graph}, τ = {args.tau:g}"
    _draw(args.out / "graph.png", vocab.names, p, c, lift, title, counts.k != counted.k)
    written = ["graph.npz", "graph.json", "graph.png"]
    if args.rules:
        from fi_jax.knowledge.rule_report import rules_page

        of = f"the annotations of `{said}`, split `{args.split}`"
        write_text(args.out / "rules.md", rules_page(of, vocab, labels >= 0.5, known))
        written.append("rules.md")
    _tell(settings, summary)
    log.info(f"wrote {', '.join(written)} to {args.out}")
    return 0


def _annotations(dataset, root: Path, args: argparse.Namespace, vocab):
    """Returns `(labels, known)` of a split over a vocabulary, both `faces n`; of CelebA by its label files alone."""
    import numpy as np

    from fi_jax.data.counts import annotation_records, label_blocks
    from fi_jax.data.sources.celeba import read_annotations
    from fi_jax.errors import UserError

    if args.countable:
        records = annotation_records(dataset.name, root)
    else:
        source = read_annotations(root) if dataset.name == "celeba" else dataset.open(root)
        records = tuple(source.records(args.split))
    blocks = list(label_blocks(records, vocab))
    if not any(known.any() for _, known in blocks):
        raise UserError(
            f"{dataset.name} under '{root}' states no label of vocabulary '{vocab.name}' in split '{args.split}'"
        )
    return np.concatenate([labels for labels, _ in blocks]), np.concatenate([known for _, known in blocks])


def _tell(settings: dict, summary: dict) -> None:
    log.info(
        f"{settings['dataset']} {settings['split']}: {settings['faces']:,} faces, vocabulary {settings['vocabulary']}"
    )
    log.info(
        f"{summary['num_edges']} edges ({settings['graph']}, tau {settings['tau']:g}), "
        f"{100 * summary['share_into_hubs']:.0f} % of them into {len(summary['hubs'])} labels: "
        + ", ".join(f"{name} {count}" for name, count in summary["hubs"].items())
    )
    log.info(
        f"{summary['edges_below_chance']} edges join labels that meet less than by chance (lift < 1), "
        f"{summary['edges_clearly_below_chance']} clearly so (lift < 0.95)"
    )
    for edge in summary["edges"][:15]:
        log.info(f"  {edge['from']:>20} → {edge['to']:<20} p {edge['p']:.3f}  lift {edge['lift']:.2f}")


def _draw(path: Path, *parts) -> None:
    import io

    from fi_jax.files import write_bytes
    from fi_jax.knowledge.graph_report import draw_graph

    buffer = io.BytesIO()
    draw_graph(*parts).savefig(buffer, format="png", dpi=110)
    write_bytes(path, buffer.getvalue())
