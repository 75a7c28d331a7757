"""Describe a table of your own faces: write its schema, check it, or propose rules from its labels.

fi-jax dataset init labels.csv --images photos     writes labels.yaml, and says what it could not decide
fi-jax dataset check labels.yaml                   reads everything, and says what was left out and why
fi-jax dataset rules labels.yaml                   rules that the labels suggest (also: fi-jax dataset rules celeba --data-root DIR)

Afterwards `table:labels.yaml` is a data set: fi-jax train finetune --data.sources.0.name table:labels.yaml
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("action", choices=("init", "check", "rules"))
    parser.add_argument(
        "table", help="init: a table, or a folder with one folder a class; else a schema (or a data set)"
    )
    parser.add_argument("--images", default="", help="init: the folder of the pictures (default: the table's own)")
    parser.add_argument("--out", type=Path, help="init: the schema to write (default: beside the table, .yaml)")
    parser.add_argument("--name", default="", help="init: the data set's name (default: the table's)")
    parser.add_argument("--data-root", default="", help="rules: the folder of a released data set")
    parser.add_argument("--most", type=int, default=20, help="rules: how many to show (default: 20)")


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    return {"init": _init, "check": _check, "rules": _rules}[args.action](args)


def _init(args: argparse.Namespace) -> int:
    import os

    from fi_jax.data.table_guess import folders_guess, guess_columns, write_schema
    from fi_jax.errors import UserError
    from fi_jax.files import write_text
    from fi_jax.labels.registry import VOCABULARY_NAMES
    from fi_jax.labels.schema import read_schema
    from fi_jax.tables import read_table

    path = Path(args.table)
    if not path.exists():
        raise UserError(f"'{path}' does not exist; give a table or a folder with one folder a class")
    path = path.resolve() if path.name in ("", "..") else path
    out = args.out or path.with_suffix(".yaml")
    if out.exists():
        raise UserError(f"'{out}' is there already; choose another --out, or delete it")
    name = args.name or "".join(c if c.isalnum() else "_" for c in path.stem)
    if name in VOCABULARY_NAMES and not args.name:
        name = f"my_{name}"
    if path.is_dir():
        guess, paths = folders_guess(path), {"folders": path}
    else:
        guess, paths = guess_columns(read_table(path)), {"table": path, "images": args.images or path.parent}
    text = write_schema(guess, name, {key: os.path.relpath(one, out.parent) for key, one in paths.items()})
    read_schema(text, "the schema that was made")
    write_text(out, text)
    print(f"wrote {out}")
    for doubt in guess.doubts:
        print(f"  to decide: {doubt}")
    print(f"next: put it right, then fi-jax dataset check {out}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from collections import Counter

    from fi_jax.data.tables import table_dataset

    dataset = table_dataset(args.table)
    source = dataset.open()
    count_tokens = _token_counter()
    splits = Counter(face.split for face in source.faces)
    print(
        f"{dataset.title}: {len(source.faces)} faces ({', '.join(f'{n} {split}' for split, n in sorted(splits.items()))})"
    )
    for question in dataset.questions:
        stated = sum(all(label in face.labels for label in question.labels if label) for face in source.faces)
        if question.family in ("age_group", "age_years"):
            stated = sum(face.age is not None for face in source.faces)
        length = f"; {count_tokens(question.text)} tokens" if count_tokens else ""
        print(f"  {question.name}: known of {stated}{length}; asked as: {question.text}")
    texts: dict[str, list[str]] = {}
    for wording, answer in (pair for face in source.faces for pair in face.texts):
        texts.setdefault(wording, []).append(answer)
    for wording, answers in texts.items():
        length = f"; up to {max(count_tokens(f'{wording} {one}') for one in answers)} tokens" if count_tokens else ""
        print(f"  free text: known of {len(answers)}{length}; asked as: {wording}")
    if count_tokens:
        print(
            "  each question is a segment of its tokens and some ten more; --data.segment-length must hold the longest"
        )
    for note in source.notes:
        print(f"  note: {note}")
    reasons = Counter(item.reason for item in source.rejected)
    for reason, count in reasons.most_common():
        first = next(item.key for item in source.rejected if item.reason == reason)
        print(f"  left out: {count} ({reason}), the first: {first}")
    return 0


def _token_counter():
    """Counts tokens as the bundled model does; None where its LLM is not installed."""
    from fi_jax.config import WeightsConfig
    from fi_jax.errors import UserError
    from fi_jax.weights.tokenizers import load_tokenizer

    try:
        tokenizer = load_tokenizer(WeightsConfig(llm="smollm2"))
    except UserError:
        return None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _rules(args: argparse.Namespace) -> int:
    from fi_jax.data.datasets import DATASET_NAMES, TABLE_PREFIX, find_dataset
    from fi_jax.data.records import label_arrays
    from fi_jax.errors import UserError
    from fi_jax.evaluation.table import Table
    from fi_jax.knowledge.rule_proposals import propose_rules

    name = (
        args.table if args.table in DATASET_NAMES or args.table.startswith(TABLE_PREFIX) else TABLE_PREFIX + args.table
    )
    dataset = find_dataset(name)
    records = dataset.open(args.data_root).records("train")
    if not records:
        raise UserError(f"{name} has no faces in split 'train', which rules are proposed from")
    vocabulary = dataset.vocabulary
    labels, known = label_arrays(records, vocabulary)
    found = propose_rules(labels, known, vocabulary.names, groups=[group.labels for group in vocabulary.groups])
    rows = [
        (
            f"- {one.rule.kind}: [{one.rule.premise}, [{', '.join(one.rule.labels)}]]",
            str(one.support),
            f"{100 * one.rate:.2f} [{100 * one.interval[0]:.2f}, {100 * one.interval[1]:.2f}]",
            f"{100 * one.expected / one.support:.1f}",
        )
        for one in found[: args.most]
    ]
    table = Table(
        ("rule", "faces", "broken, %", "by chance, %"),
        rows,
        (
            f"{len(records)} training faces of {dataset.title}; {len(found)} proposals. Keep what must hold: copy its line under `rules` in the schema.",
        ),
    )
    table.show()
    return 0
