"""Draw a figure of an evaluation, a training run or a model, as PNG, SVG or PDF.

confusion, reliability, groups, attributes: an evaluation folder (or its metrics.json).
compare: two evaluation folders and --image; card: one, with --image and --picture.
curves: run folders. graph: a run folder, a bundled model's name, or a graph.npz.
attribution: a run folder or a bundled model's name, with --picture and --question: which tokens moved its answer.
"""

import argparse
import sys
from pathlib import Path

KINDS = ("confusion", "reliability", "groups", "attributes", "compare", "card", "curves", "graph", "attribution")
# Old name -> new name; they go in the next release.
_RENAMED = {"looked": "attribution"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("kind", choices=(*KINDS, *_RENAMED), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="evaluation folder, run folder or model")
    parser.add_argument(
        "--out", type=Path, required=True, help="where to write; the ending says the format (.png, .svg, .pdf)"
    )
    parser.add_argument("--dataset", help="the data set to draw, where the evaluation has several")
    parser.add_argument("--task", help="the task to draw: attribute, gender, race, age_group, age_years, expression")
    parser.add_argument("--source", help="whose answers: llm or head")
    parser.add_argument("--setting", help="training-free or fine-tuned")
    parser.add_argument("--metric", default="accuracy", help="attributes: accuracy, balanced_accuracy or f1")
    parser.add_argument("--image", help="compare, card: key of the picture in predictions.jsonl")
    parser.add_argument("--picture", type=Path, help="compare, card, attribution: the picture's file, to be drawn")
    parser.add_argument("--mask", type=Path, help="card, attribution: the picture's segmentation map (index PNG)")
    parser.add_argument("--question", help='attribution: a closed question, e.g. "Is this person wearing eyeglasses?"')
    parser.add_argument("--answer", help="attribution: the option to explain (default: the model's own answer)")
    parser.add_argument("--box", default="", help="attribution: left,top,right,bottom in pixels, or 'full'")
    parser.add_argument("--face", type=int, default=0, help="attribution: which face, largest first")
    parser.add_argument("--head", action="store_true", help="attribution: of the alignment head instead of the LLM")
    parser.add_argument("--most", type=int, help="graph: how many edges (60); compare: how many questions (24)")
    parser.add_argument("--title", default="", help="a line on top")


def run(args: argparse.Namespace) -> int:
    """Draws one figure and writes it."""
    from fi_jax.evaluation.figures import style

    if args.kind in _RENAMED:
        print(f"fi-jax: figure '{args.kind}' is now called '{_RENAMED[args.kind]}'", file=sys.stderr)
        args.kind = _RENAMED[args.kind]
    style.check_output(args.out, [path for path in (*args.inputs, args.picture, args.mask) if path])
    draw = {"compare": _compare, "card": _card, "curves": _curves, "graph": _graph, "attribution": _attribution}
    print(style.save(draw.get(args.kind, _of_summary)(args), args.out))
    return 0


def _of_summary(args):
    from fi_jax.errors import UserError, require_choice
    from fi_jax.evaluation.figures import summary as figures
    from fi_jax.evaluation.results import read_summary, select

    needs = {"confusion": "confusion", "reliability": "calibration", "groups": "groups", "attributes": "per_attribute"}
    chosen = {name: getattr(args, name) for name in ("dataset", "task", "source", "setting")}
    by_input = {path: select(read_summary(path), needs[args.kind], **chosen) for path in args.inputs}
    found = [r for results in by_input.values() for r in results]
    fits = "; ".join(dict.fromkeys(f"{r.dataset} {r.task} {r.source} {r.setting}" for r in found))
    if args.kind in ("reliability", "groups"):
        if len({(r.dataset, r.task) for r in found}) > 1:
            raise UserError(f"several results fit ({fits}); choose one by --dataset and --task")
        named: dict = {}
        for path, results in by_input.items():
            for r in results:
                named[_unused(named, f"{Path(path).name}: {r.who}" if len(by_input) > 1 else r.who)] = r.values
        draw = figures.reliability_figure if args.kind == "reliability" else figures.groups_figure
        return draw(named, args.title or found[0].what)
    if len(found) > 1:
        raise UserError(f"several results fit ({fits}); choose one by --dataset, --task, --source and --setting")
    title = args.title or f"{found[0].what}: {found[0].who}"
    if args.kind == "confusion":
        return figures.confusion_figure(found[0].values, title)
    require_choice("metric", args.metric, ("accuracy", "balanced_accuracy", "f1"))
    return figures.attributes_figure(found[0].values, args.metric, title)


def _unused(taken: dict, name: str) -> str:
    number = 2
    fresh = name
    while fresh in taken:
        fresh, number = f"{name} ({number})", number + 1
    return fresh


def _answers_about(path: str, args) -> list:
    from fi_jax.errors import UserError
    from fi_jax.evaluation.predictions import read_predictions
    from fi_jax.evaluation.titles import setting_of

    if not args.image:
        raise UserError(f"figure {args.kind} needs --image, the key of a picture in predictions.jsonl")
    found = [
        p
        for p in read_predictions(path)
        if p.image == args.image
        and args.dataset in (None, p.dataset)
        and args.source in (None, p.source)
        and args.setting in (None, setting_of(p.seen))
    ]
    if not found:
        raise UserError(f"{path} holds no such answers about the picture '{args.image}'")
    if len({(p.dataset, p.source, p.seen) for p in found}) > 1:
        raise UserError(
            f"{path} holds several answers about '{args.image}'; choose by --dataset, --source and --setting"
        )
    return found


def _picture(args):
    from fi_jax.pictures.decode import decode

    return None if args.picture is None else decode(args.picture)


def _compare(args):
    from fi_jax.errors import UserError
    from fi_jax.evaluation.figures.compare import compare_figure

    if len(args.inputs) < 2:
        raise UserError("figure compare needs two evaluation folders")
    models: dict = {}
    for path in args.inputs:
        models[_unused(models, Path(path).name or str(path))] = _answers_about(path, args)
    return compare_figure(models, _picture(args), args.title, args.most or 24)


def _card(args):
    from fi_jax.errors import UserError
    from fi_jax.evaluation.figures.ask import ask_figure
    from fi_jax.faces.masks import read_mask
    from fi_jax.inference.answers import Answer
    from fi_jax.labels.question_bank import answered_question

    if args.picture is None:
        raise UserError("figure card needs --picture, the file of the picture to draw")
    answers = [
        Answer.likeliest(answered_question(p.question, p.task, tuple(p.probabilities)), list(p.probabilities.values()))
        for p in _answers_about(args.inputs[0], args)
        if p.probabilities
    ]
    if not answers:
        raise UserError(f"the answers about '{args.image}' carry no probabilities (free-form)")
    mask = None if args.mask is None else read_mask(args.mask)
    return ask_figure(_picture(args), mask, answers, args.title)


def _curves(args):
    from fi_jax.evaluation.figures.curves import curves_figure
    from fi_jax.evaluation.run_log import read_run_log

    runs: dict = {}
    for path in args.inputs:
        runs[_unused(runs, Path(path).name)] = read_run_log(Path(path))
    return curves_figure(runs, args.title)


def _graph(args):
    from fi_jax.evaluation.figures.graph import graph_figure
    from fi_jax.knowledge.graph_file import read_graph
    from fi_jax.weights.bundle import load_model

    if Path(args.inputs[0]).suffix == ".npz":
        names, matrices = read_graph(Path(args.inputs[0]))
        weights = matrices["graph"]
    else:
        model = load_model(args.inputs[0])
        names, weights = model.info["labels"], model.graph
    return graph_figure(names, weights, args.most or 60, args.title)


def _attribution(args):
    from fi_jax.cli.runtime import start
    from fi_jax.errors import UserError, require_choice
    from fi_jax.faces.face_detector import locate
    from fi_jax.faces.map_cache import parser_of
    from fi_jax.faces.picture_map import faces_in
    from fi_jax.labels.question_bank import questions_for
    from fi_jax.labels.schema import find_vocabulary
    from fi_jax.prompting.question_matching import match_question
    from fi_jax.weights.bundle import load_model

    if args.picture is None or not args.question:
        raise UserError("figure attribution needs --picture, a file with a face, and --question")
    image = _picture(args)
    start()
    model = load_model(args.inputs[0])
    parser = model.config.weights.parser
    box = locate(image, lambda one: faces_in(parser_of(parser), one), args.box, args.face, str(args.picture)).box
    own = None if args.mask is None else _mask_like(args.mask, image)
    match = match_question(
        args.question, questions_for(find_vocabulary(model.config.data.vocabulary, model.config.data.schemas))
    )
    if match is None:
        raise UserError(f"'{args.question}' is no closed question; ask about one attribute, age, gender or expression")
    question = match.question
    if args.answer is not None:
        require_choice("answer", args.answer, question.options)
    option = None if args.answer is None else question.options.index(args.answer)
    from fi_jax.evaluation.figures.attribution import attribution_figure
    from fi_jax.faces.framing import frame_face
    from fi_jax.inference.answerer import load_answerer
    from fi_jax.inference.attribution import attribute

    crop, mask, _ = frame_face(image, box, model.config.data, parser, own)
    print(
        "loading the model, compiling, then one gradient for each point of the path: a minute or two on a CPU",
        file=sys.stderr,
    )
    answerer = load_answerer(model)
    crop, mask = answerer.view(crop, mask, question)
    found = attribute(answerer, crop, mask, question, option, by_llm=not args.head)
    return attribution_figure(crop, mask, found, args.title)


def _mask_like(path: Path, image):
    from fi_jax.errors import UserError
    from fi_jax.faces.masks import read_mask

    mask = read_mask(path)
    if mask.shape != image.shape[:2]:
        raise UserError(
            f"--mask {path} is {mask.shape[1]}x{mask.shape[0]} but the picture is {image.shape[1]}x{image.shape[0]}; "
            "make one of the same size with 'fi-jax segment'"
        )
    return mask
