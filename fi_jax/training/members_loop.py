"""Trains many members at once: what the training loop does for one run, for all of them over one stream of batches.

Each member leaves the run folder it leaves alone: config, log, checkpoints and model. A stopped or killed program
goes on from the last step that every member has saved; a member can also be resumed alone by `fi-jax train`.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import jax
import numpy as np

from fi_jax.config import Experiment
from fi_jax.data.counts import count_records
from fi_jax.data.pipeline import Mixture, load_mixture, open_dataset, training_batches
from fi_jax.errors import UserError
from fi_jax.faces.map_cache import with_maps
from fi_jax.knowledge.correlation import build_graph
from fi_jax.labels.registry import vocabulary as find_vocabulary
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.face_insight import Constants
from fi_jax.parallel.hosts import Hosts
from fi_jax.parallel.mesh import check_batch, make_mesh
from fi_jax.parallel.preemption import PreemptionFlag
from fi_jax.parallel.rules import activation_scope, place, place_batch, replicated, state_shardings
from fi_jax.training.checkpoints import Checkpoints
from fi_jax.training.loop import finished_model
from fi_jax.training.material import learnt_from, make_transform
from fi_jax.training.members import (
    MemberInputs,
    check_members,
    make_member_step,
    member,
    member_inputs,
    own_metrics,
    shares_encoders,
    stack,
)
from fi_jax.training.optimizer import cast, make_optimizer, split_params
from fi_jax.training.run_folder import RunLog
from fi_jax.training.state import TrainState, init_state
from fi_jax.training.warm_start import word_connector
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import assemble, init_leaves, label_prompts
from fi_jax.weights.bundle import TrainedModel, load_model, save_model
from fi_jax.weights.tokenizers import load_tokenizer

Say = Callable[[str], None]

# Whether an earlier run has trained the connector shows in this leaf.
_CONNECTOR = "knowledge_connector/fc1/kernel"


def train_members(configs: Sequence[Experiment], folders: Sequence[Path], hosts: Hosts, say: Say = print) -> int:
    """Trains all `configs` side by side into their `folders`. Returns 0, or the status that asks for another start.

    Raises `UserError` before any compute when the configs cannot share a program, or run on more than one host.
    """
    if hosts.count > 1:
        raise UserError("members train on one host; start one program a host with configs of its own")
    check_members(configs)
    config = configs[0]
    mesh = make_mesh(config.mesh)
    check_batch(config.data.batch_size, 1, mesh)
    vocabulary = find_vocabulary(config.data.vocabulary)
    mixture = load_mixture(config.data)
    tokenizer = load_tokenizer(config.weights)
    data = config.data
    if config.model.use_segmentation:
        data = with_maps(mixture.records, config.data, config.weights.parser)
    initial = load_model(config.train.init_from) if config.train.init_from else None
    leaves, base_info = assemble(config, dict(initial.leaves) if initial else {}, mesh)
    trained, frozen = split_params(unflatten(leaves), config.train.trainable)
    seeds = {one.train.seed for one in configs}
    loaded = _loaded(config, set(leaves), set(initial.leaves) if initial else set())
    if len(seeds) > 1:
        _check_frozen(_used(config, set(frozen)) - loaded)
    share = shares_encoders(config, trained)
    say(
        f"{len(configs)} members in one program; {len(mixture.records)} faces; "
        f"encoders run {'once for all' if share else 'for each member'}"
    )

    fresh = [path for path in trained if path not in loaded]
    constants = _constants(configs, initial, leaves, mixture, vocabulary, tokenizer)
    starts = [{**trained, **init_leaves(one.model, fresh, one.train.seed, mesh)} for one in configs]
    if config.weights.knowledge_connector == "words" and not (initial and _CONNECTOR in initial.leaves):
        if config.train.stage == "instruct" and _CONNECTOR not in trained:
            raise UserError("members that start the knowledge connector from words train it; add it to train.trainable")
        for one, start_of, own in zip(configs, starts, constants):
            words = word_connector(one, {**leaves, **start_of}, own, vocabulary, tokenizer)
            start_of |= {path: words[path] for path in words.keys() & trained.keys()}
    states = [_first_state(one, start_of, mesh) for one, start_of in zip(configs, starts)]
    frozen = cast(frozen, config.train.frozen_dtype)
    carried = {path: frozen[path] for path in (initial.leaves if initial else {}) if path in frozen}
    info = {"labels": list(vocabulary.names), "base": base_info, "sources": learnt_from(config, initial)}
    info["init_from"] = config.train.init_from
    everywhere = replicated(mesh)
    inputs = member_inputs(configs, frozen, constants[0].prompts, [one.graph for one in constants])
    # The frozen leaves have their places.
    inputs = MemberInputs(frozen, *(place(part, everywhere) for part in inputs[1:]))
    with ExitStack() as stack_of:
        checkpoints = [stack_of.enter_context(closing(Checkpoints(f, c))) for f, c in zip(folders, configs)]
        start = _common_step(checkpoints)
        if start:
            states = [one.restore(state, carried, start) for one, state in zip(checkpoints, states)]
            say(f"resumed at step {start}")
        state = stack(states)
        shardings = state_shardings(state, mesh)
        state = place(state, shardings)
        logs = [RunLog(folder, one, start) for folder, one in zip(folders, configs)]
        step = jax.jit(make_member_step(configs, share), donate_argnums=0, out_shardings=(shardings, None))
        batches = training_batches(
            open_dataset(mixture.records, data, vocabulary),
            batch_size=data.batch_size,
            seed=data.seed,
            epoch=mixture.epoch,
            start_step=start,
            workers=data.workers,
            transform=make_transform(config, vocabulary, tokenizer),
        )
        steps = config.train.steps
        with PreemptionFlag() as preempted, activation_scope(mesh, config.model):
            clock, clock_step = time.monotonic(), start
            for number in range(start + 1, steps + 1):
                state, metrics = step(state, inputs, place_batch(next(batches), mesh))
                if number % config.train.log_every == 0 or number == steps:
                    lines = own_metrics(metrics, configs)
                    for log, line in zip(logs, lines, strict=True):
                        log.write(number, line)
                    rate = (number - clock_step) / max(time.monotonic() - clock, 1e-9)
                    say(_progress(number, steps, [line["loss"] for line in lines], rate))
                    clock, clock_step = time.monotonic(), number
                stop = preempted.reached(number)
                if stop or number % config.train.checkpoint_every == 0 or number == steps:
                    for i, kept in enumerate(checkpoints):
                        kept.save(member(state, i), carried, info)
                if stop and number < steps:
                    for kept in checkpoints:
                        kept.wait()
                    say(f"stopped at step {number}; the same command resumes there")
                    return preempted.exit_status
        for kept in checkpoints:
            kept.wait()
    for i, (folder, one, log) in enumerate(zip(folders, configs, logs)):
        log.close()
        save_model(folder / "model", finished_model(one, member(state, i), carried, constants[i], info))
    return 0


def _loaded(config: Experiment, paths: set[str], initial: set[str]) -> set[str]:
    """Leaves that come from an earlier run or a checkpoint, whatever the seed is."""
    weights = config.weights
    sources = {
        "image_encoder": weights.llava or weights.image_encoder != "random",
        "image_connector": bool(weights.llava),
        "segmentation_encoder": weights.segmentation_encoder != "random",
        "llm": weights.llava or weights.llm != "random",
    }
    given = {path for path in paths if sources.get(path.split("/")[0]) and "lora_" not in path}
    return given | (initial & paths)


def _used(config: Experiment, paths: set[str]) -> set[str]:
    """The leaves that the stage reads."""
    if config.train.stage == "instruct":
        return paths
    return {path for path in paths if not path.startswith("llm/") and "_connector/" not in path}


def _check_frozen(fresh: set[str]) -> None:
    if fresh:
        raise UserError(
            f"members differ in train.seed, and frozen leaves such as '{sorted(fresh)[0]}' are drawn from it; "
            "load them (weights.*, train.init_from) or keep one seed"
        )


def _first_state(config: Experiment, start: dict, mesh) -> TrainState:
    """A member's state at step 0."""
    state = init_state(start, make_optimizer(config.train), config.train)
    return place(state, state_shardings(state, mesh))


def _constants(
    configs: Sequence[Experiment],
    initial: TrainedModel | None,
    leaves: dict,
    mixture: Mixture,
    vocabulary: Vocabulary,
    tokenizer,
) -> list[Constants]:
    """T_p^0 (the same for all) and each member's Ĉ, from one count of the training split."""
    config = configs[0]
    if initial is None:
        if config.weights.text_encoder == "random" and len({one.train.seed for one in configs}) > 1:
            raise UserError("members differ in train.seed, and weights.text_encoder 'random' draws T_p^0 from it")
        prompts = label_prompts(config, leaves, vocabulary, tokenizer)
    elif initial.info.get("labels") != list(vocabulary.names):
        raise UserError(
            f"train.init_from '{config.train.init_from}' was trained on another vocabulary than '{vocabulary.name}'; "
            "use the same data.vocabulary"
        )
    else:
        prompts = initial.prompts
    counts = count_records(mixture.records, vocabulary)

    def graph(one: Experiment) -> np.ndarray:
        if initial is not None and initial.config.model.knowledge == one.model.knowledge:
            return np.asarray(initial.graph, np.float32)
        return build_graph(counts, one.model.knowledge, seed=one.train.seed)

    return [Constants(np.asarray(prompts, np.float32), graph(one)) for one in configs]


def _common_step(checkpoints: Sequence[Checkpoints]) -> int:
    """The last step that every member has; a kill may have come between two saves."""
    common = set.intersection(*(set(one.steps()) for one in checkpoints))
    if not common and any(one.steps() for one in checkpoints):
        raise UserError("the members' checkpoints have no step in common; raise train.keep_checkpoints, or start anew")
    return max(common, default=0)


def _progress(step: int, steps: int, losses: Sequence[float], rate: float) -> str:
    left = (steps - step) / max(rate, 1e-9) / 60
    shown = f"loss {np.nanmin(losses):.4f} to {np.nanmax(losses):.4f}"
    return f"step {step}/{steps}  {shown}  {rate:.2f} steps/s  {left:.1f} min left"
