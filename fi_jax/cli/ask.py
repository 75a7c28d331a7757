"""Ask about the faces in pictures; without a question, describe them.

fi-jax ask photo.jpg "Is this person smiling?"
fi-jax ask photos/ "Is she smiling?" "How old is she?" --json
fi-jax ask photo.jpg --chat
fi-jax ask photo.jpg --all --figure answers.png
"""

import argparse
import contextlib
import json
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "words",
        nargs="+",
        metavar="PICTURE|QUESTION",
        help='pictures, folders, globs or lists (at least one, the first), and questions about each: "Is this person '
        'smiling?", "age", "Describe this face."',
    )
    parser.add_argument("--chat", action="store_true", help="go on with questions about the same face, a line each")
    parser.add_argument(
        "--checkpoint",
        default="nano",
        metavar="RUN",
        help="a run folder, a bundled model, or a LLaVA's folder (default: nano)",
    )
    parser.add_argument("--box", default="", help="left,top,right,bottom in pixels, or 'full'; overrides face finding")
    parser.add_argument("--face", type=int, default=0, help="which face, largest first, when there are several")
    parser.add_argument(
        "--all", action="store_true", help="every closed question, grouped (race only with --race or when asked)"
    )
    parser.add_argument(
        "--race", action="store_true", help="with --all: also what annotators would call the person's race"
    )
    parser.add_argument(
        "--consistent", action="store_true", help="with --all: the most probable answers that break no rule"
    )
    parser.add_argument(
        "--known",
        action="append",
        default=[],
        metavar="QUESTION=ANSWER",
        help="what is certain of the face: gender=female, age=71, Smiling=yes; the other answers follow it",
    )
    parser.add_argument("--head", action="store_true", help="answer by the alignment head instead of the LLM (faster)")
    parser.add_argument("--json", action="store_true", help="print one JSON object; of several answers, one a line")
    parser.add_argument("--figure", metavar="F.png", help="save photo, segmentation map and answers as a picture")


@contextlib.contextmanager
def _step(words: str) -> Iterator[None]:
    """Says on stderr what is being done when it takes more than two seconds."""
    timer = threading.Timer(2.0, lambda: print(f"{words} …", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run(args: argparse.Namespace) -> int:
    """Loads the model once, and answers every question about every picture; what cannot be read is said, and passed."""
    from fi_jax.errors import UserError
    from fi_jax.pictures.decode import decode
    from fi_jax.pictures.find import find_pictures, is_named_like_pictures
    from fi_jax.prompting.refusals import checked_question

    known = _known(args.known) or None
    first, *others = args.words
    pictures = find_pictures([first, *filter(is_named_like_pictures, others)])
    questions = [checked_question(word) for word in others if not is_named_like_pictures(word)]
    if (args.figure or args.chat) and (len(pictures) > 1 or len(questions) > 1):
        raise UserError(f"--{'figure' if args.figure else 'chat'} is about one picture and at most one question")
    if args.figure:
        from fi_jax.evaluation.figures.style import check_output

        check_output(Path(args.figure), pictures)
    if len(pictures) == 1:
        decode(pictures[0])  # A mistake is said before the model is loaded.
    with _step("loading the model"):
        from fi_jax.cli.runtime import start

        start()
        from fi_jax.api import load

        model = load(args.checkpoint)
    asked: list[str | None] = [*questions] or ([] if args.chat else [None])
    several, failed = len(pictures) * len(asked) > 1, 0
    for path in pictures:
        try:
            face = _find(model, path, args)
            for question in asked:
                _answer(model, face, question, args, known, several)
        except UserError as error:
            if len(pictures) == 1:
                raise
            failed += 1
            print(f"fi-jax: {error}", file=sys.stderr)
    if failed:
        print(f"fi-jax: {failed} of {len(pictures)} pictures failed", file=sys.stderr)
    for question in _typed() if args.chat else ():
        try:
            _answer(model, face, checked_question(question), args, known, several=args.json)
        except UserError as error:
            print(error, file=sys.stderr)
    return 2 if failed else 0


class _Face(NamedTuple):
    path: Path
    image: "np.ndarray"
    box: tuple[float, float, float, float]
    # How many faces the picture has; 0 with --box, where none is looked for.
    of: int


def _find(model, path: Path, args: argparse.Namespace) -> _Face:
    """Reads a picture and finds its face."""
    from fi_jax.faces.face_detector import list_faces, locate
    from fi_jax.pictures.decode import decode

    image = decode(path)
    with _step("finding faces"):
        box, faces = locate(image, model.faces, args.box, args.face, str(path))
    if len(faces) > 1 and not args.face and not args.json:
        print(f"{len(faces)} faces; answering about the largest (choose with --face N: {list_faces(faces)})")
    return _Face(path, image, box, len(faces))


def _known(statements: list[str]) -> dict[str, str]:
    """Reads `QUESTION=ANSWER`."""
    from fi_jax.errors import UserError

    pairs = [statement.partition("=") for statement in statements]
    if wrong := [name for name, equals, value in pairs if not (name and equals and value)]:
        raise UserError(f"--known {wrong[0]}: write QUESTION=ANSWER, as in --known gender=female")
    known = {name: value for name, _, value in pairs}
    if twice := [name for name, _, value in pairs if known[name] != value]:
        raise UserError(f"--known {twice[0]} has two answers; give one")
    return known


def _typed() -> Iterator[str]:
    """Questions as they are typed, until the end of the input."""
    print("Questions about this face, one a line; Ctrl-D ends.", file=sys.stderr)
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _answer(
    model, face: _Face, question: str | None, args: argparse.Namespace, known: dict[str, str] | None, several: bool
) -> None:
    """Answers one question, or describes the face, and prints what was found."""
    from fi_jax.inference.answers import Request

    request = Request(
        question,
        everything=args.all or bool(args.figure),
        race=args.race,
        by_llm=not args.head,
        consistent=args.consistent,
        known=known,
    )
    with _step("answering (a first run compiles programs, which are kept)"):
        response = model.respond(face.image, request, box=face.box)
    if args.figure:
        from fi_jax.evaluation.figures.ask import save_answer_card

        save_answer_card(args.figure, response)
    if args.json:
        found = response.to_json(str(face.path)) | ({"faces": face.of} if face.of else {})
        print(json.dumps(found, ensure_ascii=False, indent=None if several else 1), flush=True)
        return
    if several:
        print(f"{face.path}: {question}" if question else face.path)
    print(textwrap.indent(response.to_text(), "  " if several else ""), flush=True)
    if args.figure:
        print(f"figure: {args.figure}")
