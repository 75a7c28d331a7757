"""A trained model out to the PyTorch world: one folder that explains itself and needs nothing of ours."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from fi_jax.config import Experiment
from fi_jax.config_tree import to_dict
from fi_jax.errors import UserError
from fi_jax.files import atomic_folder, write_json, write_text
from fi_jax.knowledge.choices import head_groups
from fi_jax.labels.face_parts import CLASSES, FLIPPED, PALETTE
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.segformer import SegformerConfig
from fi_jax.prompting.sequences import SequenceBuilder
from fi_jax.trees import flatten
from fi_jax.weights import hf_config, hf_write, huggingface, layouts, leaf_table, stream
from fi_jax.weights.bundle import TrainedModel
from fi_jax.weights.hub import resolve_folder
from fi_jax.weights.leaves import write_safetensors
from fi_jax.weights.llm_families import FAMILIES
from fi_jax.weights.model_card import model_card
from fi_jax.weights.peft import export_peft

log = logging.getLogger(__name__)

PLAIN_LLAVA = "merged/ is a plain LLaVA: it carries the picture, but neither segmentation nor knowledge tokens; face_insight.py does"
PLAIN_LLM = "merged/ is a plain language model: it carries neither image, segmentation nor knowledge tokens; face_insight.py does"


class Parser(Protocol):
    """A face parser (`faces.parser.FaceParser`): SegFormer, the side of its pictures, its variables."""

    @property
    def config(self) -> SegformerConfig: ...

    @property
    def input_size(self) -> int: ...

    @property
    def variables(self) -> dict: ...


def export(
    model: TrainedModel,
    leaves: Mapping[str, Any],
    builder: SequenceBuilder,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    out: Path,
    *,
    parser: Parser | None = None,
    merged: bool = False,
) -> None:
    """Writes the folder; it appears whole or not at all.

    Args:
      model: what was trained.
      leaves: all parameters, flat (`weights.assemble.assemble`), in the type the model answers in.
      builder: asks every closed question of the vocabulary, in tokens of `tokenizer`.
      parser: makes segmentation maps; written too, so that a picture is all the PyTorch side needs.
      merged: also write the language model with its adapter merged, in its base's own layout.

    Raises:
      UserError: `out` exists already, or cannot be written; or the model is an ablation of the map.
    """
    if model.config.model.segmentation_input != "map":
        raise UserError("a model that sees no map of its own faces is for ablation alone (model.segmentation_input)")
    if model.config.model.llm.bidirectional_prefix or model.config.model.image_connector != "mlp":
        raise UserError(
            "a model over PaliGemma cannot be exported: its prefix needs a mask that the PyTorch module lacks"
        )
    if not model.config.model.knowledge.tokens:
        raise UserError("a checkpoint that nothing was trained of needs no export: it is in PyTorch's form already")
    with atomic_folder(out) as folder:
        config = model.config
        llm = {path.removeprefix("llm/"): leaf for path, leaf in leaves.items() if path.startswith("llm/")}
        adapters = {path: np.asarray(leaf, np.float32) for path, leaf in llm.items() if "/lora_" in path}
        base = _base(model, llm, adapters, builder, tokenizer, folder)
        write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
        if adapters:
            name = str(base["name"])
            export_peft(
                adapters,
                config.model.llm,
                folder / "adapter",
                base_name=name,
                base_hash=str(base["hash"]),
                made_from_hash=str(base.get("made_from", {}).get("hash", "")),
                in_llava=base["model_type"] not in FAMILIES,
            )
            log.info(f"adapter/: {len(adapters) // 2} kinds of layers, rank {config.model.llm.lora.rank}, onto {name}")
        state = {
            key: tensor
            for leaf in leaf_table.torch_leaves(config.model)
            for key, tensor in leaf.split(np.asarray(leaves[leaf.path]))
        }
        state |= {"prompts": model.prompts.astype(np.float32), "graph": model.graph.astype(np.float32)}
        if model.relations is not None:
            state |= {name: np.asarray(part, np.float32) for name, part in model.relations._asdict().items()}
        write_safetensors(folder / "face_insight.safetensors", state)
        size = sum(value.size for value in state.values()) / 1e6
        log.info(f"face_insight.safetensors: {size:.1f} M parameters beside the language model")
        ours = Path(__file__).parents[1]
        for source, name in (
            ("weights/torch_model.py", "face_insight.py"),
            ("weights/torch_knowledge.py", "face_knowledge.py"),
            ("weights/torch_pictures.py", "face_pictures.py"),
            ("prompting/question_matching.py", "question_matching.py"),
            ("labels/phrases.json", "phrases.json"),
            ("faces/alignment.py", "face_alignment.py"),
        ):
            shutil.copyfile(ours / source, folder / name)
        described = settings(model, builder, vocabulary, base)
        if parser is not None:
            hf_write.export_segformer(flatten(parser.variables), parser.config, folder / "parser", CLASSES)
            described["parser_size"] = parser.input_size
        write_json(folder / "face_insight.json", described, indent=1)
        write_json(folder / "config.json", to_dict(config), indent=1)
        write_json(folder / "model.json", model.info, indent=1)
        write_json(
            folder / "rules.json", [asdict(rule) | {"reads": str(rule)} for rule in rules_for(vocabulary)], indent=1
        )
        card = model_card(model, base, has_adapter=bool(adapters), has_merged=merged, has_parser=parser is not None)
        write_text(folder / "README.md", card)
        if merged:
            _write_merged(model, llm, builder, tokenizer, folder)


def settings(
    model: TrainedModel, builder: SequenceBuilder, vocabulary: Vocabulary, base: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what the PyTorch module needs besides weights: shapes, questions as tokens, labels, colours."""
    rows = builder.build([range(len(builder.questions))])
    groups = head_groups(model.config.model.knowledge, vocabulary)
    questions = []
    for i, question in enumerate(builder.questions):
        valid, options = rows["segment_valid"][0, i], rows["option_tokens"][0, i, : len(question.options)]
        tokens = rows["segment_tokens"][0, i][valid].tolist()
        if len(tokens) != rows["answer_position"][0, i] + 1:
            raise AssertionError(f"question {question.name} does not end where its answer is due")
        questions.append(asdict(question) | {"tokens": tokens, "option_tokens": options.tolist()})
    return {
        "model": to_dict(model.config.model),
        # transformers' own configs of the encoders.
        "towers": {
            part: hf_config.vision_json(getattr(model.config.model, f"{part}_encoder"))
            for part in ("image", "segmentation")
        },
        "base": dict(base),
        # What training here changed; the rest is as its checkpoints have it.
        "trained": sorted(model.leaves),
        "labels": list(vocabulary.names),
        # Places of the labels of each choice that the alignment head makes; none where it is Bernoulli.
        "groups": [] if groups is None else [np.flatnonzero(group).tolist() for group in groups],
        "prompts": {label.name: label.prompt for label in vocabulary.labels},
        # Negative ids are slots: -1 image, -2 segmentation, -3 knowledge tokens.
        "prefix": rows["prefix_tokens"][0].tolist(),
        "questions": questions,
        "template": asdict(builder.template),
        "end_id": builder.end_id,
        # After stage 1 the language model has not been taught to read faces: the alignment head answers.
        "answers_by": "llm" if model.config.train.stage == "instruct" else "head",
        "temperatures": model.info.get("temperatures", {}),
        "head_temperatures": model.info.get("head_temperatures", {}),
        # Whether labels are scored on picture and mirror image, and what a mirror makes of each class of the map.
        "mirror": model.info.get("mirror", False),
        "flipped": FLIPPED.tolist(),
        # Side of the square crop the model was trained on, and how faces are cut.
        "image_size": model.config.data.image_size,
        "frame": model.config.data.frame,
        # Questions, and families of them, that see the face brought nearer.
        "nearer": model.info.get("nearer", []),
        "classes": list(CLASSES),
        "palette": PALETTE.tolist(),
    }


def _base(
    model: TrainedModel,
    llm: Mapping[str, Any],
    adapters: Mapping[str, Any],
    builder: SequenceBuilder,
    tokenizer: Tokenizer,
    folder: Path,
) -> dict[str, Any]:
    """Names the language model that the adapter belongs to; writes it into `base/` where nobody can fetch it."""
    weights = model.config.weights
    source = weights.llava or weights.llm
    trained = [path for path in model.leaves if path.startswith("llm/") and "/lora_" not in path]
    if _is_checkpoint(weights.llm, weights.llava) and not trained:
        files = stream.find_files(resolve_folder(source))
        kind = hf_config.model_type(resolve_folder(source))
        return {"name": source, "hash": stream.checkpoint_hash(files), "model_type": kind}
    bare = {path: leaf for path, leaf in llm.items() if path not in adapters}
    _write_llm(bare, model.config, builder, tokenizer, folder / "base")
    digest = stream.checkpoint_hash(stream.find_files(folder / "base"))
    made_from = model.info.get("base", {}).get("llm", {"name": weights.llm})
    return {"name": "base", "hash": digest, "model_type": model.config.model.llm.family, "made_from": made_from}


def _is_checkpoint(llm: str, llava: str) -> bool:
    return bool(llava) or not (llm in ("random", "smollm2") or llm.endswith(".gguf"))


def _write_llm(
    leaves: Mapping[str, Any], config: Experiment, builder: SequenceBuilder, tokenizer: Tokenizer, folder: Path
) -> None:
    """Writes the LLM (adapters among `leaves` are merged) with its tokenizer, for `from_pretrained`."""
    end = builder.template.end
    # What generation stops at; only a token of its own may also end texts for the tokenizer.
    end_id = builder.end_id
    named = {"eos_token": end, "pad_token": end} if tokenizer.token_to_id(end) is not None else {}
    extra = {"bos_token_id": None, "eos_token_id": end_id, "pad_token_id": end_id}
    hf_write.export_llm(leaves, config.model.llm, folder, dtype=config.model.dtype, extra=extra)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named}, indent=1)


def _write_merged(
    model: TrainedModel, llm: Mapping[str, Any], builder: SequenceBuilder, tokenizer: Tokenizer, folder: Path
) -> None:
    config = model.config
    weights, target = config.weights, folder / "merged"
    if not _is_checkpoint(weights.llm, weights.llava):
        _write_llm(llm, config, builder, tokenizer, target)
        log.info(PLAIN_LLM)
        return
    if weights.llava:
        rows, layout = leaf_table.llava_leaves(config.model), layouts.LLAVA
    else:
        rows = leaf_table.under("llm", leaf_table.llm_leaves(config.model.llm))
        layout = huggingface.llm_layout(resolve_folder(weights.llm), config.model.llm)
    # The adapter from where it answers: of a run that kept an imported one frozen, the model's own leaves lack it.
    trained = {**model.leaves, **{f"llm/{path}": np.asarray(leaf) for path, leaf in llm.items() if "/lora_" in path}}
    hf_write.merge_into_copy(
        resolve_folder(weights.llava or weights.llm),
        target,
        leaf_table.without_adapters(rows),
        layouts.with_tied_head(layout, config.model.llm),
        trained,
        lambda path: config.model.llm.lora if path.startswith("llm/") else config.model.image_encoder.lora,
    )
    log.info(PLAIN_LLAVA if weights.llava else PLAIN_LLM)
