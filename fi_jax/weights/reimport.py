"""An exported folder, as PyTorch left it -> a model of ours: the way back of `weights.export`."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fi_jax.errors import UserError
from fi_jax.knowledge.score_graph import Relations
from fi_jax.trees import flatten
from fi_jax.weights import layouts, leaf_table
from fi_jax.weights.bundle import TrainedModel, is_llm_adapter, read_config, read_info
from fi_jax.weights.huggingface import load_llm
from fi_jax.weights.json_fields import Fields, read_object
from fi_jax.weights.leaves import load_leaves
from fi_jax.weights.matching import match
from fi_jax.weights.peft import import_peft
from fi_jax.weights.stream import checkpoint_hash, find_files


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
    settings = Fields(read_object(folder / "face_insight.json"), str(folder / "face_insight.json"))
    config, info = read_config(folder / "config.json"), read_info(folder / "model.json")
    base = settings.group("base")
    base_hash = base.text("hash", "")
    if base.get("name") == "base" and checkpoint_hash(find_files(folder / "base")) != base_hash:
        raise UserError(f"{folder / 'base'} was changed: it is not the language model that the adapter belongs to")
    leaves: dict[str, np.ndarray] = {}
    if adapter is None and (folder / "adapter").is_dir():
        adapter = folder / "adapter"
    if adapter is not None:
        read = import_peft(adapter, config.model.llm)
        if read.base_hashes and base_hash not in read.base_hashes:
            raise UserError(
                f"{adapter} was trained on {read.base or 'a base'} with hash {read.base_hashes[0][:12]}…, but the base "
                f"of {folder} has {base_hash[:12]}…: another base"
            )
        leaves |= {f"llm/{path}": leaf for path, leaf in read.leaves.items()}
        lora = read.lora
        if set(lora.targets) == set(config.model.llm.lora.targets):
            lora = replace(lora, targets=config.model.llm.lora.targets)
        model = replace(config.model, llm=replace(config.model.llm, lora=lora))
        config = replace(config, model=model, weights=replace(config.weights, adapter=""))
    own = {path for path in settings.texts("trained") if path.startswith("llm/") and not is_llm_adapter(path)}
    if own:
        _, params, _ = load_llm(folder / "base", dtype="float32")
        whole = flatten({"llm": params})
        if strangers := sorted(own - whole.keys()):
            raise UserError(f"{settings.where}: trained names {', '.join(strangers)}, which the base does not have")
        leaves |= {path: np.asarray(whole[path]) for path in whole if path in own}
    # Not only those of `settings["trained"]`: PyTorch may have gone on with others.
    file = folder / "face_insight.safetensors"
    state = load_leaves(file)
    if "image_encoder.patch_embed.weight" in state:
        raise UserError(
            f"{folder} was exported by fi_jax 0.1, which named the encoders' weights otherwise; export it again"
        )
    related = ("lift", "prior") if config.model.knowledge.score_graph != "off" else ()
    missing = [name for name in ("prompts", "graph", *related) if name not in state]
    if missing:
        raise UserError(f"{file} lacks {' and '.join(missing)}; export it again")
    prompts, graph = state.pop("prompts"), state.pop("graph")
    relations = Relations(*map(state.pop, related)) if related else None
    rows = leaf_table.torch_leaves(config.model)
    keys = match(str(file), rows, {key: value.shape for key, value in state.items()}, layouts.TORCH).keys
    leaves |= {leaf.path: leaf.join(lambda key: state[keys[key]]) for leaf in rows}
    return TrainedModel(config, leaves, prompts, graph, info, relations)
