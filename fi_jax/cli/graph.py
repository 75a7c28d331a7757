"""Compute, save and draw the co-occurrence graph of a data set's annotations (C and Ĉ).

CelebA needs its annotation files alone, no picture; splits are its official partition. Other sets are read as
for training. Leaves graph.npz (counts, P, C, Ĉ), graph.json (settings, edges) and graph.png under --out; with
--rules also rules.md: every declared rule and how often the annotations break it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

GRAPHS = ("cooccurrence", "lift", "shuffled")
SPLITS = ("train", "val", "test", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("dataset", metavar="DATASET", nargs="?", default="celeba", help="data set (default: celeba)")
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="the release, as downloaded")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--split", choices=SPLITS, default="train", help="faces to count (default: train)")
    parser.add_argument("--vocabulary", default=None, help="labels to count (default: the data set's own)")
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
    from fi_jax.knowledge import correlation
    from fi_jax.labels.registry import vocabulary

    config = KnowledgeConfig(tau=args.tau, omega=args.omega, graph=args.graph)
    dataset = find_dataset(args.dataset)
    vocab = vocabulary(args.vocabulary) if args.vocabulary else dataset.vocabulary
    labels, known = read_labels(args.dataset, args.data_root, args.split, vocab)
    counts = correlation.update(correlation.empty(len(vocab)), labels, known)
    p, lift = correlation.conditional(counts), correlation.lift(counts)
    c = correlation.build_adjacency(counts, config, args.seed)
    refined = correlation.reweight(c, config.omega)

    summary = summarise(vocab.names, p, c, lift)
    settings = {
        "dataset": args.dataset,
        "split": args.split,
        "vocabulary": vocab.name,
        "faces": len(labels),
        "graph": args.graph,
        "tau": args.tau,
        "omega": args.omega,
        "seed": args.seed,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"labels": np.array(vocab.names), **counts._asdict(), "p": p, "c": c}
    arrays["graph"] = refined.astype(np.float32)
    _write(args.out / "graph.npz", lambda file: np.savez_compressed(file, **arrays))
    text = json.dumps({**settings, **summary, "labels": vocab.names}, indent=1)
    _write(args.out / "graph.json", lambda file: file.write(text.encode()))
    title = f"{args.dataset}, {args.split}: {len(labels):,} faces, {args.graph}, τ = {args.tau:g}"
    _draw(args.out / "graph.png", vocab.names, p, c, lift, title)
    written = ["graph.npz", "graph.json", "graph.png"]
    if args.rules:
        _write_rules(args, vocab, labels, known)
        written.append("rules.md")
    _print(settings, summary)
    print(f"wrote {', '.join(written)} to {args.out}")
    return 0


def read_labels(dataset: str, root: Path, split: Any, vocab):
    """Returns `(labels, known)` of a split over a vocabulary, both [faces, n], float32 and bool."""
    import numpy as np

    from fi_jax.errors import UserError

    if dataset == "celeba":
        from fi_jax.data.sources import celeba

        names, attributes, values = celeba.read_attributes(root)
        parts = celeba.read_partition(root)
        chosen = [i for i, name in enumerate(names) if name in parts and split in (parts[name], "all")]
        known = np.zeros((len(chosen), len(vocab)), bool)
        labels = np.zeros((len(chosen), len(vocab)), np.float32)
        for column, attribute in enumerate(attributes):
            if attribute in vocab:
                at = vocab.index(attribute)
                labels[:, at], known[:, at] = values[chosen, column] > 0, values[chosen, column] != 0
    else:
        from fi_jax.data.datasets import open_source
        from fi_jax.data.records import encode_labels

        pairs = [encode_labels(record, vocab) for record in open_source(dataset, root).records(split)]
        labels = np.array([pair[0] for pair in pairs], np.float32).reshape(len(pairs), len(vocab))
        known = np.array([pair[1] for pair in pairs], bool).reshape(len(pairs), len(vocab))
    if not known.any():
        raise UserError(f"{dataset} under '{root}' states no label of vocabulary '{vocab.name}' in split '{split}'")
    return labels, known


def summarise(names, p, c, lift) -> dict:
    """Returns edges (strongest first) and what sort of graph they make."""
    import numpy as np

    rows, columns = np.nonzero(c)
    order = np.argsort(-p[rows, columns], kind="stable")
    edges = [
        {"from": names[i], "to": names[j], "p": round(float(p[i, j]), 4), "lift": round(float(lift[i, j]), 3)}
        for i, j in zip(rows[order], columns[order], strict=True)
    ]
    incoming = c.sum(0)
    hubs = np.argsort(-incoming, kind="stable")[:9]
    values = lift[rows, columns]
    return {
        "num_edges": len(edges),
        "labels_without_neighbours": [names[i] for i in np.flatnonzero(c.sum(1) == 0)],
        "hubs": {names[i]: int(incoming[i]) for i in hubs},
        "share_into_hubs": round(float(incoming[hubs].sum() / max(len(edges), 1)), 4),
        "edges_below_chance": int((values < 1).sum()),
        "edges_clearly_below_chance": int((values < 0.95).sum()),
        "edges": edges,
    }


def _print(settings: dict, summary: dict) -> None:
    print(
        f"{settings['dataset']} {settings['split']}: {settings['faces']:,} faces, vocabulary {settings['vocabulary']}"
    )
    print(
        f"{summary['num_edges']} edges ({settings['graph']}, tau {settings['tau']:g}), "
        f"{100 * summary['share_into_hubs']:.0f} % of them into {len(summary['hubs'])} labels: "
        + ", ".join(f"{name} {count}" for name, count in summary["hubs"].items())
    )
    print(
        f"{summary['edges_below_chance']} edges join labels that meet less than by chance (lift < 1), "
        f"{summary['edges_clearly_below_chance']} clearly so (lift < 0.95)"
    )
    for edge in summary["edges"][:15]:
        print(f"  {edge['from']:>20} → {edge['to']:<20} p {edge['p']:.3f}  lift {edge['lift']:.2f}")


def _draw(path: Path, *parts) -> None:
    from fi_jax.knowledge.graph_figure import draw_graph

    figure = draw_graph(*parts)
    _write(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _write_rules(args: argparse.Namespace, vocab, labels, known) -> None:
    from fi_jax.knowledge.rule_report import rules_page

    source = f"the annotations of `{args.dataset}`, split `{args.split}`"
    page = rules_page(source, vocab, labels >= 0.5, known)
    _write(args.out / "rules.md", lambda file: file.write(page.encode()))


def _write(path: Path, write) -> None:
    """Writes beside `path` and renames, so that a half-written file never has its name."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
