"""The training loop: assembles the model, feeds batches, steps, logs, saves, resumes, stops when told to."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fi_jax.config import Experiment
from fi_jax.data.pipeline import Mixture, load_mixture, open_dataset, training_batches
from fi_jax.errors import UserError
from fi_jax.faces.map_cache import with_maps
from fi_jax.knowledge.logic import compile_rules
from fi_jax.labels.registry import vocabulary as find_vocabulary
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.face_insight import Constants
from fi_jax.models.llama import unstack_layers
from fi_jax.parallel.hosts import Hosts, check_same, check_shared, ends_together
from fi_jax.parallel.mesh import check_batch, make_mesh, run_on
from fi_jax.parallel.preemption import PreemptionFlag, Watchdog
from fi_jax.parallel.rules import activation_scope, fetch, local_rows, place, place_batch, replicated, state_shardings
from fi_jax.training.abstract import jit_step
from fi_jax.training.checkpoints import Checkpoints
from fi_jax.training.material import learnt_from, make_transform, training_graph
from fi_jax.training.optimizer import cast, make_optimizer, split_params
from fi_jax.training.run_folder import RunLog
from fi_jax.training.state import Leaves, TrainState, final_leaves, init_state
from fi_jax.training.step import StepInputs
from fi_jax.training.warm_start import word_connector
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import assemble, label_prompts
from fi_jax.weights.bundle import TrainedModel, load_model, save_model
from fi_jax.weights.tokenizers import load_tokenizer

Say = Callable[[str], None]


def train(config: Experiment, folder: Path, hosts: Hosts, say: Say = print, *, finish: bool = False) -> int:
    """Trains until `train.steps`, from the last checkpoint in `folder` if there is one.

    With `finish`, a run that was stopped ends where its last checkpoint is: the model is written without another step.

    Returns the exit status: 0 when done, else the one that asks the scheduler to start the job again.
    Raises `UserError` before any compute for what can be checked before.
    """
    if finish and not any((folder / "checkpoints").glob("[0-9]*")):
        raise UserError(f"{folder} has no checkpoint to finish at; train without --finish first")
    mesh = make_mesh(config.mesh)
    check_batch(config.data.batch_size, config.train.accumulate, mesh, hosts.count)
    check_same("config", repr(config), hosts)
    vocabulary = find_vocabulary(config.data.vocabulary)
    mixture = load_mixture(config.data)
    for note in mixture.notes:
        say(note)
    for bad in mixture.unreadable:
        say(f"skipped {bad.key}: {bad.reason}")
    tokenizer = load_tokenizer(config.weights)
    transform = make_transform(config, vocabulary, tokenizer)
    data = (
        with_maps(mixture.records, config.data, config.weights.parser) if config.model.use_segmentation else config.data
    )
    say(f"{len(mixture.records)} faces; {jax.device_count()} device(s); run folder {folder}")

    initial = load_model(config.train.init_from) if config.train.init_from else None
    leaves, base_info = assemble(config, dict(initial.leaves) if initial else {}, mesh, announce=True)
    constants = _constants(config, initial, leaves, mixture, vocabulary, tokenizer)
    fresh = initial is None or "knowledge_connector/fc1/kernel" not in initial.leaves
    if config.weights.knowledge_connector == "words" and fresh:
        started = word_connector(config, leaves, constants, vocabulary, tokenizer)
        leaves |= {path: place(leaf, leaves[path].sharding) for path, leaf in started.items()}
    trained, frozen = split_params(unflatten(leaves), config.train.trainable)
    frozen = cast(frozen, config.train.frozen_dtype)
    # Leaves trained in an earlier stage and frozen in this one belong to the run all the same.
    carried = {path: frozen[path] for path in (initial.leaves if initial else {}) if path in frozen}
    about = _describe(trained, frozen)
    del leaves
    frozen = unstack_layers(frozen, run_on(config, mesh).model.scan_layers)

    optimizer = make_optimizer(config.train)
    state = init_state(trained, optimizer, config.train)
    state = place(state, state_shardings(state, mesh))
    rules = compile_rules(rules_for(vocabulary), vocabulary)
    inputs = StepInputs(frozen, place(constants, replicated(mesh)), place(rules, replicated(mesh)))
    info: dict[str, Any] = {
        "labels": list(vocabulary.names),
        "base": base_info,
        "sources": learnt_from(config, initial),
    }
    info["init_from"] = config.train.init_from

    check_shared(folder, hosts)
    # Closed whatever happens: a manager left open complains when Python ends.
    with closing(Checkpoints(folder, config)) as checkpoints:
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(state, carried)
            say(f"resumed at step {int(state.step)}")
        start = int(state.step)
        steps = start if finish else config.train.steps
        log = RunLog(folder, config, start) if hosts.is_first else None
        step = jit_step(config, state, mesh)

        say(about)
        rows = local_rows(mesh, config.data.batch_size)
        share = rows.stop - rows.start
        # Nothing is read for a run that has no step left.
        batches = (
            iter(())
            if start >= steps
            else training_batches(
                open_dataset(mixture.records, data, vocabulary),
                batch_size=config.data.batch_size,
                seed=config.data.seed,
                epoch=mixture.epoch,
                start_step=start,
                host_index=rows.start // share,
                host_count=config.data.batch_size // share,
                workers=config.data.workers,
                transform=transform,
            )
        )
        with (
            ends_together(hosts),
            PreemptionFlag(hosts.count) as preempted,
            Watchdog(config.train.stall_seconds) as watchdog,
            activation_scope(mesh, config.model),
        ):
            clock, clock_step = time.monotonic(), start
            for number in range(start + 1, steps + 1):
                state, metrics = step(state, inputs, place_batch(next(batches), mesh))
                watchdog.beat()
                if number % config.train.log_every == 0 or number == config.train.steps:
                    values = {name: float(value) for name, value in metrics.items()}
                    if log:
                        log.write(number, values)
                    rate = (number - clock_step) / max(time.monotonic() - clock, 1e-9)
                    say(_progress(number, config.train.steps, values, rate))
                    clock, clock_step = time.monotonic(), number
                    if not np.isfinite(values["loss"]):
                        raise UserError(
                            f"the loss is {values['loss']} at step {number}; lower train.learning_rate (the last checkpoint is intact)"
                        )
                stop = preempted.reached(number)
                if stop or number % config.train.checkpoint_every == 0 or number == config.train.steps:
                    checkpoints.save(state, carried, info)
                if stop and number < config.train.steps:
                    checkpoints.wait()
                    say(f"stopped at step {number}; the same command resumes there")
                    return preempted.exit_status
        checkpoints.wait()
    if steps < config.train.steps:
        info["steps"] = steps
    model = finished_model(config, state, carried, constants, info)
    if log:
        log.close()
        save_model(folder / "model", model)
        say(f"done: {folder / 'model'}")
    return 0


def finished_model(
    config: Experiment, state: TrainState, carried: dict, constants: Constants, info: dict
) -> TrainedModel:
    """Everything ever trained, on the host (the running average where there is one). All processes must call it.

    The decoder of stage `pretrain` has done its work and is not part of it.
    """
    everything = fetch({**carried, **final_leaves(state)})
    leaves = {
        path: np.asarray(leaf, np.float32) for path, leaf in everything.items() if not path.startswith("decoder/")
    }
    return TrainedModel(config, leaves, np.asarray(constants.prompts), np.asarray(constants.graph), info)


def _constants(
    config: Experiment, initial: TrainedModel | None, leaves: dict, mixture: Mixture, vocabulary: Vocabulary, tokenizer
) -> Constants:
    """T_p^0 and Ĉ: those of the model that training starts from, else computed from the base and the training split."""
    if initial is not None:
        if initial.info.get("labels") != list(vocabulary.names):
            raise UserError(
                f"train.init_from '{config.train.init_from}' was trained on another vocabulary than '{vocabulary.name}'; use the same data.vocabulary"
            )
        prompts = initial.prompts
    else:
        prompts = label_prompts(config, leaves, vocabulary, tokenizer)
    if initial is not None and initial.config.model.knowledge == config.model.knowledge:
        graph = initial.graph
    else:
        graph = training_graph(config, mixture, vocabulary)
    return Constants(np.asarray(prompts, np.float32), np.asarray(graph, np.float32))


def _describe(trained: Leaves, frozen: Leaves) -> str:
    def millions(leaves: Leaves) -> float:
        return sum(leaf.size for leaf in leaves.values()) / 1e6

    parts = sorted({path.split("/")[0] for path in trained})
    return f"training {millions(trained):.2f} M parameters ({', '.join(parts)}); {millions(frozen):.1f} M frozen"


def _progress(step: int, steps: int, values: dict[str, float], rate: float) -> str:
    terms = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if name != "grad_norm")
    left = (steps - step) / max(rate, 1e-9)
    return f"step {step}/{steps}  {terms}  {rate:.2f} steps/s  {left / 60:.1f} min left"
