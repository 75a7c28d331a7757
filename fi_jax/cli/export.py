"""Export a trained model to PyTorch: a folder that `peft` and `transformers` load, with the whole model in one file.

fi-jax export nano --out exported
fi-jax export runs/my_run --out exported --merged
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder or the name of a bundled model")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not exist")
    parser.add_argument(
        "--merged",
        action="store_true",
        help="also the language model with its adapter merged, in the base's own layout",
    )


def run(args: argparse.Namespace) -> int:
    """Assembles the model, checks its base, writes the folder."""
    from fi_jax.files import require_new
    from fi_jax.weights.bundle import load_model

    require_new(args.out)
    model = load_model(args.run)
    from fi_jax.cli.runtime import start

    start()
    from fi_jax.faces.parser import load_parser
    from fi_jax.inference.answerer import load_answerer
    from fi_jax.labels.question_bank import questions_for
    from fi_jax.trees import flatten
    from fi_jax.weights.export import export

    answerer = load_answerer(model, merge=False)
    builder = answerer.builder(answerer.answerable(questions_for(answerer.vocabulary)))
    parser = load_parser(model.config.weights.parser) if model.config.reads_maps else None
    export(
        model,
        flatten(answerer.params),
        builder,
        answerer.tokenizer,
        answerer.vocabulary,
        args.out,
        parser=parser,
        merged=args.merged,
    )
    print(f"exported to {args.out}; its README.md says how to use it")
    return 0
