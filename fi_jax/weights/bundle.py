"""A trained model as a folder: `config.json`, `weights.safetensors`, `model.json` (vocabulary, base, notes).

Bundled models live in the package under `bundled/`; a run writes the same folder as `runs/N/model/` when it ends. A
checkpoint of Hugging Face's, of pictures and text, is a model as well: one that nothing was trained of here.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fi_jax.config import DataConfig, Dtype, Experiment, KnowledgeConfig, ModelConfig, TrainConfig, WeightsConfig
from fi_jax.config_tree import from_dict, to_dict
from fi_jax.errors import UserError, did_you_mean
from fi_jax.files import is_intact, sha256, write_json
from fi_jax.knowledge.score_graph import Relations
from fi_jax.labels.registry import vocabulary
from fi_jax.weights import hf_config
from fi_jax.weights.json_fields import Fields, read_object
from fi_jax.weights.leaves import load_leaves, save_leaves

BUNDLED = Path(__file__).parent.parent / "bundled"
WEIGHTS, CONFIG, MODEL = "weights.safetensors", "config.json", "model.json"
_PROMPTS, _GRAPH = "constants/prompts", "constants/graph"
_LIFT, _PRIOR = "constants/lift", "constants/prior"


@dataclass(frozen=True)
class TrainedModel:
    """Everything that was ever trained here, and what it belongs to. Leaves are flat {path: float32 array}."""

    config: Experiment
    leaves: dict[str, np.ndarray]
    prompts: np.ndarray
    graph: np.ndarray
    # Label names in order, hash and name of the base LLM, temperatures, the sets it saw, …
    info: dict = field(default_factory=dict)
    # What counts say of pairs of labels, of a model whose scores hear each other.
    relations: Relations | None = None


def save_model(folder: Path, model: TrainedModel, precision: str = "float32") -> None:
    """Writes a model folder; the weights file comes last, so a folder with one is whole."""
    write_json(folder / CONFIG, to_dict(model.config), indent=2)
    write_json(folder / MODEL, model.info, indent=2)
    leaves = {**model.leaves, _PROMPTS: model.prompts, _GRAPH: model.graph}
    if model.relations is not None:
        leaves |= {_LIFT: np.asarray(model.relations.lift), _PRIOR: np.asarray(model.relations.prior)}
    save_leaves(folder / WEIGHTS, leaves, precision)


def load_model(name_or_folder: str | Path) -> TrainedModel:
    """Loads a bundled model by name, a run folder, a model folder, or the folder of a checkpoint (`is_checkpoint`)."""
    if is_checkpoint(name_or_folder):
        return _untrained(Path(name_or_folder))
    folder = find_model(name_or_folder)
    require_intact(folder)
    config = read_config(folder / CONFIG)
    info = read_info(folder / MODEL)
    leaves = load_leaves(folder / WEIGHTS)
    related = (_LIFT, _PRIOR) if config.model.knowledge.score_graph != "off" else ()
    missing = [name for name in (_PROMPTS, _GRAPH, *related) if name not in leaves]
    if missing:
        raise UserError(f"{folder / WEIGHTS} lacks {', '.join(missing)}; it is not a fi_jax model")
    prompts, graph = leaves.pop(_PROMPTS), leaves.pop(_GRAPH)
    relations = Relations(leaves.pop(_LIFT), leaves.pop(_PRIOR)) if related else None
    if prompts.ndim != 2 or graph.shape != (len(prompts), len(prompts)):
        raise UserError(f"{folder / WEIGHTS} is damaged: prompts {prompts.shape}, graph {graph.shape}")
    config, info = _settled(config, leaves, info)
    return TrainedModel(config, leaves, prompts, graph, info, relations)


def is_checkpoint(name_or_folder: str | Path) -> bool:
    """Whether a folder is Hugging Face's, of a model of pictures and text, and not one of ours."""
    file = Path(name_or_folder) / CONFIG
    return file.is_file() and "vision_config" in read_object(file)


def _untrained(folder: Path) -> TrainedModel:
    """A checkpoint as it is: no map, no knowledge tokens, its own words around a question. Its head knows nothing."""
    read, small = hf_config.read_llava_config(folder), 8
    stored = hf_config.read_config(folder)
    dtype: Dtype = "float32" if "float32" in (stored.get("dtype"), stored.get("torch_dtype")) else "bfloat16"
    model = ModelConfig(
        read.image_encoder,
        # Not used.
        read.image_encoder,
        read.llm,
        KnowledgeConfig(enabled=False, tokens=False, align_size=small, prompt_size=small),
        use_segmentation=False,
        image_connector=read.image_connector,
        image_newline=read.image_newline,
        dtype=dtype,
    )
    config = Experiment(
        "checkpoint",
        model,
        WeightsConfig(llava=str(folder)),
        DataConfig(vocabulary="all", image_size=read.image_encoder.image_size, template="checkpoint"),
        train=TrainConfig(frozen_dtype=dtype),
    )
    names = list(vocabulary("all").names)
    # Files by size and time: 14 GB are not read for it.
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    info = {"labels": names, "sources": [], "untrained": True, "fingerprint": sha256(repr(stamps))[:12]}
    nothing = np.zeros((len(names), small), np.float32)
    return TrainedModel(config, {}, nothing, np.eye(len(names), dtype=np.float32), info)


def require_intact(folder: Path) -> None:
    """Compares every file of a bundled model or parser with the SHA-256 beside it; other folders have none."""
    if folder.resolve().parent != BUNDLED.resolve():
        return
    changed = [seal.stem for seal in sorted(folder.glob("*.sha256")) if not is_intact(seal.with_suffix(""))]
    if changed:
        raise UserError(f"{', '.join(changed)} in {folder} is not the file that came with fi_jax; install it again")


def _settled(config: Experiment, leaves: dict, info: dict) -> tuple[Experiment, dict]:
    """Forgets the adapter that training started from where the model holds the one it ended with."""
    if not config.weights.adapter or not any(map(is_llm_adapter, leaves)):
        return config, info
    base = {part: named for part, named in info.get("base", {}).items() if part != "adapter"}
    return replace(config, weights=replace(config.weights, adapter="")), {**info, "base": base}


def is_llm_adapter(path: str) -> bool:
    """Tells whether a leaf belongs to the language model's adapter."""
    return path.startswith("llm/") and "/lora_" in path


def find_model(name_or_folder: str | Path) -> Path:
    """Finds the model folder behind a name or path; `UserError` says what there is."""
    for folder in (Path(name_or_folder) / "model", Path(name_or_folder), BUNDLED / str(name_or_folder)):
        if (folder / WEIGHTS).is_file():
            return folder
    if Path(name_or_folder).is_dir():
        raise UserError(
            f"{name_or_folder} holds no finished model (no {WEIGHTS}) and no checkpoint of pictures and text; did the "
            "training run end?"
        )
    known = bundled_names()
    raise UserError(
        f"no model '{name_or_folder}': neither a run folder nor bundled ({', '.join(known) or 'none'}){did_you_mean(str(name_or_folder), known)}"
    )


def bundled_names() -> list[str]:
    """Names of the models that came with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{WEIGHTS}") if (path.parent / MODEL).is_file())


def read_config(path: Path) -> Experiment:
    """Reads a run's `config.json`."""
    values = read_object(path)
    try:
        return from_dict(Experiment, values)
    # Sizes that do not go together, which a config written by us never has.
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path} holds no valid config ({error})") from None


def read_info(path: Path) -> dict:
    """Reads a model's `model.json`; an entry of another type than we write is a `UserError` that names it."""
    fields = Fields(read_object(path), str(path))
    for name in ("labels", "sources", "nearer"):
        fields.texts(name)
    for name in ("temperatures", "head_temperatures"):
        for family in (group := fields.group(name)).values:
            group.number(family)
    for part in (base := fields.group("base")).values:
        base.group(part).text("hash", "")
    fields.flag("mirror", False)
    return dict(fields.values)
