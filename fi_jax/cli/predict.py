"""Answer about every picture of a folder, a list or a table: one row a face, in CSV, Parquet or JSON lines.

fi-jax predict photos/ --out answers.csv
fi-jax predict faces.csv --known-columns gender age=years --out answers.csv
fi-jax predict faces.csv --column picture --questions Smiling gender age_years --whole --out answers.parquet

An interrupted run goes on where it stopped when the same command is given again.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="pictures, folders, globs, lists (.txt) or tables with a picture column",
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write: .csv, .parquet or .jsonl")
    parser.add_argument(
        "--checkpoint", default="nano", metavar="RUN", help="a run folder or a bundled model (default: nano)"
    )
    parser.add_argument("--column", default="", help="the column of a table that names the pictures")
    parser.add_argument(
        "--known-columns",
        nargs="+",
        default=(),
        metavar="QUESTION[=COLUMN]",
        help="columns of a table that hold what is certain of each face; the other answers follow it",
    )
    parser.add_argument(
        "--questions", nargs="+", default=(), metavar="NAME", help="which questions (default: all but race)"
    )
    parser.add_argument("--race", action="store_true", help="also what annotators would call the person's race")
    parser.add_argument("--head", action="store_true", help="answer by the alignment head instead of the LLM (faster)")
    parser.add_argument("--every-face", action="store_true", help="a row for every face, not for the largest alone")
    parser.add_argument("--whole", action="store_true", help="the pictures are face crops already: search for no face")
    parser.add_argument("--batch-size", type=int, default=8, help="faces that the model answers about at once")


def run(args: argparse.Namespace) -> int:
    """Predicts; what could not be read is a row with its reason, and is listed at the end."""
    import time

    from fi_jax.cli.runtime import start
    from fi_jax.errors import UserError, require_choice

    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}; it must be at least 1")
    if args.known_columns and args.every_face:
        raise UserError("--known-columns says something of one face a picture; leave out --every-face")
    from fi_jax.api import load
    from fi_jax.files import sha256
    from fi_jax.inference.prediction_files import PredictionFile
    from fi_jax.pictures.find import find_pictures

    pictures = find_pictures(args.paths, args.column)
    pairs = [one.partition("=") for one in args.known_columns]
    columns = {name: column or name for name, _, column in pairs}
    if twice := [name for name, _, column in pairs if columns[name] != (column or name)]:
        raise UserError(f"--known-columns {twice[0]} names two columns; give one")
    known = _known(args, columns)
    start()
    model = load(args.checkpoint)
    questions = model.choose_questions(args.questions or None, race=args.race)
    for name in columns:
        require_choice("--known-columns", name, model.statements)
    made_with = {
        "model": model.fingerprint,
        "head": args.head,
        "every_face": args.every_face,
        "whole": args.whole,
    }
    if columns:
        made_with["known"] = sha256(repr(sorted(known.items())))[:16]
    file = PredictionFile(args.out, questions, made_with)
    left = [path for path in pictures if str(path) not in file.done]
    if file.done:
        print(f"{len(pictures) - len(left)} of {len(pictures)} pictures were done before", flush=True)
    from fi_jax.progress import progress_bar

    began, faces, failed = time.monotonic(), 0, []
    with progress_bar("answering", len(left)) as advance:
        predictions = model.predict(
            left,
            questions=[question.name for question in questions],
            by="head" if args.head else "llm",
            every_face=args.every_face,
            whole=args.whole,
            batch_size=args.batch_size,
            known=[known[path] for path in left] if columns else None,
            progress=advance,
        )
        for found in file.write(predictions):
            faces += sum(one.face > 0 for one in found)
            failed += [one for one in found if one.error]
    rows = file.finish()
    for one in failed[:20]:
        print(f"{one.image}: {one.error}")
    if len(failed) > 20:
        print(f"… and {len(failed) - 20} more; column 'error' has them all")
    rate = faces / max(time.monotonic() - began, 1e-9)
    print(
        f"{args.out}: {rows} rows; {faces} faces in this run, {rate:.1f} a second; nothing about {len(failed)} pictures"
    )
    return 0


def _known(args: argparse.Namespace, columns: dict[str, str]) -> dict[Path, dict[str, str]]:
    """What the tables state of each picture; `columns`: question -> column."""
    from fi_jax.errors import UserError, require_choice
    from fi_jax.pictures.find import picture_rows
    from fi_jax.tables import TABLE_SUFFIXES

    found: dict[Path, dict[str, str]] = {}
    for path in map(Path, args.paths if columns else ()):
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise UserError(f"--known-columns are of tables; '{path}' is none")
        for picture, row in picture_rows(path, args.column):
            for column in columns.values():
                require_choice(f"column of '{path.name}'", column, row)
            stated = {name: row[column] for name, column in columns.items()}
            if found.setdefault(picture, stated) != stated:
                raise UserError(f"'{path}' states two things of '{picture}'; leave out --known-columns, or one of them")
    return found
