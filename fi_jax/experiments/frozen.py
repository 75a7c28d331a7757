"""Heads and knowledge graphs over encoders that stay as they are: features are computed once, members train on them.

Thousands of steps of many members then cost what one pass of the encoders over the faces costs. Pictures are not
augmented, since their features are kept.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from fi_jax.config import Experiment
from fi_jax.data.examples import stamp
from fi_jax.data.kept import kept_arrays
from fi_jax.data.pipeline import evaluation_batches, open_dataset, stream_places
from fi_jax.data.records import FaceRecord, label_arrays
from fi_jax.errors import UserError
from fi_jax.faces.map_cache import with_maps
from fi_jax.labels.schema import find_vocabulary
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.face_insight import Alignment, Constants, FaceInsight, Faces
from fi_jax.models.pixels import encoder_pixels
from fi_jax.progress import progress_bar
from fi_jax.training.callbacks import Diverged, Line, Log
from fi_jax.training.loop import run_steps
from fi_jax.training.members import check_members, member, shared_config, side_by_side, stack
from fi_jax.training.optimizer import make_optimizer
from fi_jax.training.setup import step_inputs
from fi_jax.training.state import Leaves, final_leaves, init_state
from fi_jax.training.step import make_step
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import init_leaves, param_shapes
from fi_jax.weights.bundle import TrainedModel

_TOWERS = ("image_encoder/", "segmentation_encoder/")
HEAD = ("knowledge/", "head/")
# Of the encoders and of what is trained over them, whatever type the base was trained in.
_DTYPE: Literal["float32"] = "float32"


class Features(NamedTuple):
    """What frozen encoders say about `f` faces, and the faces' labels over the vocabulary."""

    image: Float[np.ndarray, "f di"]
    # None where the model has no segmentation encoder.
    segmentation: Float[np.ndarray, "f dj"] | None
    labels: Float[np.ndarray, "f n"]
    # Whether each is known, or how much it weighs.
    known: Bool[np.ndarray, "f n"] | Float[np.ndarray, "f n"]

    def faces(self, rows: np.ndarray | slice, use_segmentation: bool) -> Faces:
        """The faces at `rows` as the alignment head takes them; it reads no tokens."""
        image = jnp.asarray(self.image[rows])
        segmentation = jnp.asarray(cast(np.ndarray, self.segmentation)[rows]) if use_segmentation else None
        none = jnp.zeros((len(image), 0, 1))
        return Faces(image[:, None, :], image, none if use_segmentation else None, segmentation)


def frozen_config(config: Experiment, base: TrainedModel) -> Experiment:
    """Returns `config` as it trains over the encoders of `base`: stage `align`, nothing random in the encoders.

    Everything is float32, the frozen leaves too: `face_features` computes what `fi-jax train` would with this config.
    """
    model = replace(
        config.model,
        image_encoder=replace(base.config.model.image_encoder, drop_path=0.0),
        segmentation_encoder=replace(base.config.model.segmentation_encoder, drop_path=0.0),
        use_segmentation=base.config.model.use_segmentation,
        knowledge=replace(config.model.knowledge, prompt_size=base.prompts.shape[-1]),
        dtype=_DTYPE,
    )
    data = replace(
        config.data,
        vocabulary=base.config.data.vocabulary,
        image_size=base.config.data.image_size,
        augment=False,
        mixup=0.0,
    )
    train = replace(
        config.train,
        stage="align",
        trainable=tuple(f"{part}.*" for part in HEAD),
        frozen_dtype=_DTYPE,
        init_from="",
        accumulate=1,
    )
    # The maps are those that the encoders were trained on.
    weights = replace(config.weights, parser=base.config.weights.parser)
    return replace(config, model=model, weights=weights, data=data, train=train)


def face_features(
    base: TrainedModel,
    records: Sequence[FaceRecord],
    cache: Path,
    mask_cache: str = "",
    vocabulary: Vocabulary | None = None,
) -> Features:
    """Runs the encoders of `base` over faces, once: the result is kept in folder `cache`.

    The labels are over `vocabulary`, that of `base` by default.

    Raises:
      UserError: the encoders of `base` were loaded, not trained here, so its folder does not hold them.
    """
    config = replace(base.config, model=replace(base.config.model, dtype=_DTYPE, remat="none"))
    towers = {path: leaf for path, leaf in base.leaves.items() if path.startswith(_TOWERS)}
    missing = [path for path in param_shapes(config.model) if path.startswith(_TOWERS) and path not in towers]
    if missing:
        raise UserError(
            f"the model holds no '{missing[0]}': its encoders were not trained here, so they cannot be frozen"
        )
    vocabulary = vocabulary or find_vocabulary(config.data.vocabulary, config.data.schemas)
    labels, known = label_arrays(records, vocabulary)
    digest = hashlib.sha256("\n".join(stamp(record) for record in records).encode())
    digest.update(repr((config.model, config.data.image_size, config.data.frame, config.weights.parser)).encode())
    for path in sorted(towers):
        digest.update(np.ascontiguousarray(towers[path]).tobytes())
    file = cache / f"{digest.hexdigest()[:16]}.npz"
    found = kept_arrays(file, lambda: _encode_all(config, towers, records, mask_cache))
    return Features(found["image"], found.get("segmentation"), labels, known)


def _encode_all(config: Experiment, towers: dict, records: Sequence[FaceRecord], mask_cache: str) -> dict:
    model = FaceInsight(config.model)
    params = unflatten({path: jnp.asarray(leaf) for path, leaf in towers.items()})

    @jax.jit
    def encode(params, image, mask):
        pixels, maps = encoder_pixels(image, mask, config.model)
        faces = model.apply({"params": params}, pixels, maps, method="encode")
        return faces.image_pooled, faces.segmentation_pooled

    data = replace(config.data, mask_cache=mask_cache, cache_in_memory=False)
    if config.reads_maps:
        data = with_maps(records, data, config.weights.parser)
    dataset = open_dataset(records, data, find_vocabulary(config.data.vocabulary, config.data.schemas))
    rows: list[tuple] = []
    with progress_bar("encoding faces", len(records)) as advance:
        for batch in evaluation_batches(dataset, batch_size=min(64, len(records))):
            real = int((batch["weight"] > 0).sum())
            made = encode(params, batch["image"], batch["mask"])
            rows.append(tuple(None if one is None else np.asarray(one, np.float32)[:real] for one in made))
            advance(real)
    found = {"image": np.concatenate([image for image, _ in rows])}
    if config.model.use_segmentation:
        found["segmentation"] = np.concatenate([segmentation for _, segmentation in rows])
    return found


class Trained(NamedTuple):
    """One member when it has trained: its leaves and what it reads besides."""

    config: Experiment
    leaves: Leaves
    constants: Constants
    # What was logged: a line a `train.log_every` steps, as a run's `metrics.jsonl` has them.
    log: list[dict[str, float]]


def fresh_head(config: Experiment) -> Leaves:
    """The leaves of a head and a graph network that have learnt nothing."""
    return init_leaves(config.model, [p for p in param_shapes(config.model) if p.startswith(HEAD)], config.train.seed)


def train_on_features(
    configs: Sequence[Experiment],
    starts: Sequence[Leaves],
    constants: Sequence[Constants],
    features: Features,
    epoch: np.ndarray,
) -> list[Trained]:
    """Trains the heads and graphs of all `configs` side by side, in one program, on faces whose features are known.

    Args:
      configs: of `frozen_config`, differing in numbers only.
      starts: the leaves of each head and graph network.
      constants: what each reads besides.
      epoch: places in `features` that make up an epoch.

    Raises:
      UserError: the configs cannot share a program, or the loss of one of them is not finite.
    """
    check_members(configs)
    config, count = shared_config(configs), len(configs)
    states = [
        init_state(start, make_optimizer(one.train), one.train) for one, start in zip(configs, starts, strict=True)
    ]
    inputs = jax.device_put(step_inputs(configs, {}, constants))
    one_step = make_step(config)
    step = jax.jit(side_by_side(one_step) if count > 1 else one_step, donate_argnums=0)
    logs: list[list[Line]] = [[] for _ in configs]

    def write(i: int, number: int, line: Line) -> None:
        logs[i].append({"step": number, **line})

    measured = Log(configs, [partial(write, i) for i in range(count)])
    steps, size = config.train.steps, config.data.batch_size
    batches = (
        _batch(features, epoch[stream_places(config.data.seed, at, at + size, len(epoch))], config)
        for at in range(0, steps * size, size)
    )
    state = run_steps(lambda state, batch: step(state, inputs, batch), stack(states), batches, [measured], steps)
    if measured.diverged:
        raise Diverged(measured.diverged, count)
    return [Trained(one, final_leaves(member(state, i, count)), constants[i], logs[i]) for i, one in enumerate(configs)]


def _batch(features: Features, rows: np.ndarray, config: Experiment) -> dict:
    return {
        "faces": features.faces(rows, config.model.use_segmentation),
        "labels": features.labels[rows],
        "known": features.known[rows],
        "weight": np.ones(len(rows), np.float32),
    }


def label_scores(trained: Trained, features: Features) -> Float[np.ndarray, "f n"]:
    """Returns the alignment head's logits of every label for every face."""
    config = trained.config.model
    model = FaceInsight(config)
    faces = features.faces(slice(None), config.use_segmentation)
    params = unflatten({path: jnp.asarray(leaf) for path, leaf in trained.leaves.items()})
    alignment = cast(Alignment, model.apply({"params": params}, faces, trained.constants, method="align"))
    return np.asarray(alignment.scores, np.float32)
