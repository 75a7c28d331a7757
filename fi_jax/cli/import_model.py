"""Bring an exported folder back, as PyTorch left it: a model that every command takes as RUN.

fi-jax import exported --out runs/back
fi-jax import exported --adapter my_peft_adapter --out runs/back
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("exported", type=Path, metavar="FOLDER", help="a folder that fi-jax export wrote")
    parser.add_argument(
        "--adapter", type=Path, metavar="DIR", help="another adapter that PEFT trained on its base (default: its own)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not exist")


def run(args: argparse.Namespace) -> int:
    """Reads the folder, writes the model."""
    from fi_jax.files import atomic_folder, require_new
    from fi_jax.weights.bundle import save_model
    from fi_jax.weights.reimport import read_exported

    require_new(args.out)
    model = read_exported(args.exported, args.adapter)
    with atomic_folder(args.out) as folder:
        save_model(folder, model)
    lora = model.config.model.llm.lora
    adapter = f"an adapter of rank {lora.rank} on {', '.join(lora.targets)}" if lora.rank else "no adapter"
    print(f"{len(model.leaves)} leaves, {adapter}")
    print(f"imported to {args.out}; fi-jax ask IMAGE --checkpoint {args.out}")
    return 0
