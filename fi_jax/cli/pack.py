"""Pack a finished run into a small model folder: half precision, temperatures fitted on validation answers.

fi-jax pack runs/nano --out packed/nano --calibrate out/nano_val
"""

import argparse
from pathlib import Path

from fi_jax.labels.questions import FAMILIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder or the name of a bundled model")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not exist")
    parser.add_argument(
        "--precision", choices=("float32", "float16", "int8"), default="float16", help="of its weights (float16)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="what the packed model computes in (default: as it was trained; CPUs want float32)",
    )
    parser.add_argument(
        "--mirror",
        action="store_true",
        help="labels are scored on picture and mirror image from now on (one more pass of the encoders)",
    )
    parser.add_argument(
        "--nearer",
        nargs="+",
        metavar="NAME",
        help="questions that see the face brought nearer, as UTKFace frames faces, for a model that was trained in frames "
        f"that differ from set to set: labels or {', '.join(FAMILIES)}",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="EVAL",
        help="an evaluation of the run on validation faces: one temperature a task family is fitted on its answers",
    )


def run(args: argparse.Namespace) -> int:
    """Reads the run, fits temperatures, writes the folder."""
    from dataclasses import replace

    from fi_jax.errors import UserError, require_choice
    from fi_jax.files import atomic_folder, require_new
    from fi_jax.labels.schema import find_vocabulary
    from fi_jax.weights.bundle import load_model, save_model

    require_new(args.out)
    model = load_model(args.run)
    info = dict(model.info)
    if args.calibrate:
        from fi_jax.evaluation.calibration import family_temperatures
        from fi_jax.evaluation.predictions import read_predictions

        predictions = list(read_predictions(args.calibrate / "predictions.jsonl"))
        if any(p.split != "val" for p in predictions):
            raise UserError(
                f"{args.calibrate} holds answers about other faces than split 'val'; fit on validation only"
            )
        # The answers were given with the temperatures that the run has.
        for source, name in (("llm", "temperatures"), ("head", "head_temperatures")):
            already = info.get(name, {})
            found = family_temperatures(p for p in predictions if p.source == source)
            if found:
                info[name] = {family: round(t * already.get(family, 1.0), 4) for family, t in found.items()}
                print(f"{source} temperatures: " + ", ".join(f"{family} {t:.2f}" for family, t in info[name].items()))
    if args.mirror:
        info["mirror"] = True
    if args.nearer:
        labels = find_vocabulary(model.config.data.vocabulary, model.config.data.schemas).names
        for name in args.nearer:
            require_choice("--nearer", name, (*FAMILIES, *labels))
        info["nearer"] = args.nearer
    config = _elsewhere(model.config)
    if args.dtype:
        config = replace(config, model=replace(config.model, dtype=args.dtype))
    if config.model.dtype == "float32":
        # The flash kernel is bfloat16 only.
        config = replace(config, model=replace(config.model, attention="xla"))
    info["init_from"] = config.train.init_from
    with atomic_folder(args.out) as folder:
        save_model(folder, replace(model, config=config, info=info), args.precision)
    size = sum(file.stat().st_size for file in args.out.iterdir()) / 2**20
    print(f"packed into {args.out}: {size:.1f} MiB")
    return 0


def _elsewhere(config):
    """The config without the folders of the machine it was trained on."""
    from dataclasses import replace

    data = config.data
    sources = tuple(replace(source, root=f"data/{source.name}" if source.root else "") for source in data.sources)
    init_from = config.train.init_from and f"runs/{Path(config.train.init_from).name}"
    return replace(
        config,
        data=replace(data, sources=sources, mask_cache=""),
        train=replace(config.train, init_from=init_from),
    )
