"""Draw a figure of an evaluation, a training run or a model, as PNG, SVG or PDF.

confusion, reliability, groups, attributes: an evaluation folder (or its metrics.json).
compare: two evaluation folders and --image; card: one, with --image and --picture.
curves: run folders. graph: a run folder, a bundled model's name, or a graph.npz.
looked: a run folder or a bundled model's name, with --picture and --question: where it looked for its answer.
"""

import argparse
from pathlib import Path

KINDS = ("confusion", "reliability", "groups", "attributes", "compare", "card", "curves", "graph", "looked")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
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
    parser.add_argument("--picture", type=Path, help="compare, card, looked: the picture's file, to be drawn")
    parser.add_argument("--mask", type=Path, help="card, looked: the picture's segmentation map (index PNG)")
    parser.add_argument("--question", help='looked: a closed question, e.g. "Is this person wearing eyeglasses?"')
    parser.add_argument("--answer", help="looked: the option to explain (default: the model's own answer)")
    parser.add_argument("--box", default="", help="looked: left,top,right,bottom in pixels, or 'full'")
    parser.add_argument("--face", type=int, default=0, help="looked: which face, largest first")
    parser.add_argument("--head", action="store_true", help="looked: explain the alignment head instead of the LLM")
    parser.add_argument("--most", type=int, help="graph: how many edges (60); compare: how many questions (24)")
    parser.add_argument("--title", default="", help="a line on top")


def run(args: argparse.Namespace) -> int:
    """Draws one figure and writes it."""
    from fi_jax.errors import require_choice
    from fi_jax.evaluation.figures import style

    require_choice("figure format", args.out.suffix.lstrip(".").lower(), style.FORMATS)
    draw = {"compare": _compare, "card": _card, "curves": _curves, "graph": _graph, "looked": _looked}.get(
        args.kind, _of_summary
    )
    print(style.save(draw(args), args.out))
    return 0


def _of_summary(args):
    from fi_jax.errors import UserError, require_choice
    from fi_jax.evaluation.entries import select
    from fi_jax.evaluation.figures import summary as figures
    from fi_jax.evaluation.summarise import read_summary

    needs = {"confusion": "confusion", "reliability": "calibration", "groups": "groups", "attributes": "per_attribute"}
    chosen = {name: getattr(args, name) for name in ("dataset", "task", "source", "setting")}
    by_input = {path: select(read_summary(path), needs[args.kind], **chosen) for path in args.inputs}
    found = [r for results in by_input.values() for r in results]
    if args.kind in ("reliability", "groups"):
        if len({(r.dataset, r.task) for r in found}) > 1:
            raise UserError(f"several results fit ({_listed(found)}); choose one by --dataset and --task")
        named = {}
        for path, results in by_input.items():
            for r in results:
                named[_unused(named, f"{Path(path).name}: {r.who}" if len(by_input) > 1 else r.who)] = r.values
        draw = figures.reliability_figure if args.kind == "reliability" else figures.groups_figure
        return draw(named, args.title or found[0].what)
    if len(found) > 1:
        raise UserError(
            f"several results fit ({_listed(found)}); choose one by --dataset, --task, --source and --setting"
        )
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


def _listed(found) -> str:
    return "; ".join(dict.fromkeys(f"{r.dataset} {r.task} {r.source} {r.setting}" for r in found))


def _answers_about(path: str, args) -> list:
    from fi_jax.errors import UserError
    from fi_jax.evaluation.predictions import read_predictions

    if not args.image:
        raise UserError(f"figure {args.kind} needs --image, the key of a picture in predictions.jsonl")
    setting = {"training-free": False, "fine-tuned": True, None: None}.get(args.setting, args.setting)
    found = [
        p
        for p in read_predictions(path)
        if p.image == args.image
        and args.dataset in (None, p.dataset)
        and args.source in (None, p.source)
        and setting in (None, p.seen)
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
    models = {}
    for path in args.inputs:
        models[_unused(models, Path(path).name or str(path))] = _answers_about(path, args)
    return compare_figure(models, _picture(args), args.title, args.most or 24)


def _card(args):
    from fi_jax.errors import UserError
    from fi_jax.evaluation.figures.ask import Answered, ask_figure
    from fi_jax.faces.masks import read_mask
    from fi_jax.labels.question_bank import question

    if args.picture is None:
        raise UserError("figure card needs --picture, the file of the picture to draw")
    answers = [
        Answered(question(p.question), [p.probabilities.get(o, 0.0) for o in question(p.question).options])
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

    runs = {}
    for path in args.inputs:
        runs[_unused(runs, Path(path).name)] = read_run_log(Path(path))
    return curves_figure(runs, args.title)


def _graph(args):
    from fi_jax.errors import UserError
    from fi_jax.evaluation.figures.graph import graph_figure

    path = Path(args.inputs[0])
    if path.suffix == ".npz":
        import numpy as np

        if not path.is_file():
            raise UserError(f"{path} does not exist; make it with 'fi-jax graph DATASET --out DIR'")
        with np.load(path) as arrays:
            if "names" not in arrays or "graph" not in arrays:
                raise UserError(f"{path} holds no arrays 'names' and 'graph'")
            names, weights = [str(n) for n in arrays["names"]], arrays["graph"]
    else:
        from fi_jax.weights.bundle import load_model

        model = load_model(args.inputs[0])
        names, weights = model.info["labels"], model.graph
    return graph_figure(names, weights, args.most or 60, args.title)


def _looked(args):
    from fi_jax.errors import UserError, require_choice
    from fi_jax.faces.face_detector import locate
    from fi_jax.labels.question_bank import questions_for
    from fi_jax.labels.registry import vocabulary
    from fi_jax.pictures.crop import crop_square, crop_square_mask
    from fi_jax.weights.bundle import load_model

    if args.picture is None or not args.question:
        raise UserError("figure looked needs --picture, a file with a face, and --question")
    image = _picture(args)
    model = load_model(args.inputs[0])
    box = locate(image, args.box, args.face, str(args.picture))
    size = model.config.data.image_size
    crop = crop_square(image, box, size)
    mask = None if args.mask is None else crop_square_mask(_mask_like(args.mask, image), box, size)
    from fi_jax.prompting.question_matching import match_question

    asked = match_question(args.question, questions_for(vocabulary(model.config.data.vocabulary)))
    if asked is None:
        raise UserError(f"'{args.question}' is no closed question; ask about one attribute, age, gender or expression")
    if args.answer is not None:
        require_choice("answer", args.answer, asked.options)
    option = None if args.answer is None else asked.options.index(args.answer)
    from fi_jax.cli.runtime import start

    start()
    from fi_jax.evaluation.figures.attribution import looking_figure
    from fi_jax.faces.map_cache import map_of
    from fi_jax.inference.answerer import load_answerer
    from fi_jax.inference.attribution import attribute

    mask = map_of(crop, model.config.weights.parser) if mask is None else mask
    looked = attribute(load_answerer(model), crop, mask, asked, option, by_llm=not args.head)
    return looking_figure(crop, mask, looked, args.title)


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
