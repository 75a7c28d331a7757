"""Ask about a face in a picture; without a question, describe the face.

fi-jax ask photo.jpg "Is this person smiling?"
fi-jax ask photo.jpg --all --figure answers.png
"""

import argparse
import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("image", help="a picture with at least one face")
    parser.add_argument("question", nargs="?", help='e.g. "Is this person smiling?", "age", "Describe this face."')
    parser.add_argument(
        "--checkpoint", default="nano", metavar="RUN", help="a run folder or a bundled model (default: nano)"
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
    parser.add_argument("--head", action="store_true", help="answer by the alignment head instead of the LLM (faster)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
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
    """Finds the face, parses it, answers."""
    from fi_jax.files import refuse_overwrite
    from fi_jax.pictures.decode import decode
    from fi_jax.prompting.refusals import checked_question
    from fi_jax.weights.bundle import load_model

    question = None if args.question is None else checked_question(args.question)
    if args.figure:
        # Figures of ours are matplotlib's; a photograph of the same name stays.
        mark = b"atplotlib" if args.figure.lower().endswith((".png", ".svg")) else b""
        refuse_overwrite([Path(args.figure)], [Path(args.image)], mark)
    image = decode(Path(args.image))
    model = load_model(args.checkpoint)
    with _step("loading the model"):
        from fi_jax.cli.runtime import start
        from fi_jax.faces.face_detector import choose_face, crop_for_model, list_faces, parse_box

        faces, box = [], parse_box(args.box, *image.shape[:2]) if args.box else None
        start()
        from fi_jax.inference.answerer import load_answerer
        from fi_jax.inference.answers import Request
        from fi_jax.inference.conversation import respond

        answerer = load_answerer(model)
    if box is None:
        with _step("finding faces"):
            from fi_jax.faces.parser import load_parser
            from fi_jax.faces.picture_map import faces_in

            faces = faces_in(load_parser(model.config.weights.parser), image)
            box = crop_for_model(choose_face(faces, args.face, args.image))
    request = Request(
        question,
        everything=args.all or bool(args.figure),
        race=args.race,
        by_llm=not args.head,
        consistent=args.consistent,
    )
    with _step("answering (a first run compiles programs, which are kept)"):
        response = respond(answerer, image, box, request)
    if args.figure:
        from fi_jax.evaluation.figures.ask import save_answer_card

        save_answer_card(args.figure, response)
    if args.json:
        # With --box no faces were looked for.
        found = response.to_json(args.image) | ({"faces": len(faces)} if faces else {})
        print(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        if len(faces) > 1 and not args.face:
            print(f"{len(faces)} faces; answering about the largest (choose with --face N: {list_faces(faces)})")
        print(response.to_text())
        if args.figure:
            print(f"figure: {args.figure}")
    return 0
