"""An exported folder, as PyTorch left it -> a model of ours: the way back of `weights.export`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from fi_jax.errors import UserError
from fi_jax.weights.assemble import param_shapes
from fi_jax.weights.bundle import TrainedModel, is_llm_adapter, read_config
from fi_jax.weights.hf_config import read_json
from fi_jax.weights.huggingface import load_llama
from fi_jax.weights.leaves import load_leaves
from fi_jax.weights.peft import import_peft
from fi_jax.weights.stream import checkpoint_hash, find_files
from fi_jax.weights.torch_state import from_state


def read_exported(folder: Path, adapter: Path | None = None) -> TrainedModel:
    """Reads a folder that `weights.export` wrote, whatever PyTorch has done to its weights since.

    Encoders, connectors, graph network, head, prompts and Ĉ come from `face_insight.safetensors`, the language
    model's adapter from `adapter` (default: the folder's own), whose rank, alpha and targets become the config's.
    What training here changed of the language model itself comes from `base/`. In float32 all of it is bit-equal.

    Raises:
      UserError: no such folder; another base; weights that do not fit, all of them named at once.
    """
    if not (folder / "face_insight.json").is_file():
        raise UserError(f"{folder} is no folder that fi-jax export wrote (it has no face_insight.json)")
    settings, config = read_json(folder / "face_insight.json"), read_config(folder / "config.json")
    info = read_json(folder / "model.json")
    base = settings["base"]
    if base["name"] == "base" and checkpoint_hash(find_files(folder / "base")) != base["hash"]:
        raise UserError(f"{folder / 'base'} was changed: it is not the language model that the adapter belongs to")
    leaves: dict[str, np.ndarray] = {}
    if adapter is None and (folder / "adapter").is_dir():
        adapter = folder / "adapter"
    if adapter is not None:
        read = import_peft(adapter, config.model.llm)
        if read.base_hashes and base["hash"] not in read.base_hashes:
            raise UserError(
                f"{adapter} was trained on {read.base or 'a base'} with hash {read.base_hashes[0][:12]}…, but the base "
                f"of {folder} has {base['hash'][:12]}…: another base"
            )
        leaves |= {f"llm/{path}": leaf for path, leaf in read.leaves.items()}
        lora = read.lora
        if set(lora.targets) == set(config.model.llm.lora.targets):
            lora = replace(lora, targets=config.model.llm.lora.targets)
        model = replace(config.model, llm=replace(config.model.llm, lora=lora))
        config = replace(config, model=model, weights=replace(config.weights, adapter=""))
    own = [path for path in settings["trained"] if path.startswith("llm/") and not is_llm_adapter(path)]
    if own:
        _, params, _ = load_llama(folder / "base", dtype="float32")
        whole = flatten_dict(params, sep="/")
        leaves |= {path: np.asarray(whole[path.removeprefix("llm/")]) for path in own}
    # Not only those of `settings["trained"]`: PyTorch may have gone on with others.
    state = {
        key: np.asarray(value, np.float32) for key, value in load_leaves(folder / "face_insight.safetensors").items()
    }
    missing = [name for name in ("prompts", "graph") if name not in state]
    if missing:
        raise UserError(f"{folder / 'face_insight.safetensors'} lacks {' and '.join(missing)}; export it again")
    prompts, graph = state.pop("prompts"), state.pop("graph")
    shapes = {path: shape for path, shape in param_shapes(config.model).items() if not path.startswith("llm/")}
    return TrainedModel(config, leaves | from_state(state, shapes), prompts, graph, info)
