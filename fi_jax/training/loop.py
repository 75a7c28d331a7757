"""The training loop: step, log, save, resume, stop when told to; for one run, and for many in one program.

Each run leaves a folder of its own: config, log, checkpoints and model. What was stopped or killed goes on from the
last step that every member has saved; a member can also be resumed alone.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from fi_jax.config import Experiment
from fi_jax.errors import UserError
from fi_jax.models.face_insight import Constants
from fi_jax.parallel.hosts import Hosts, check_shared, ends_together, from_first
from fi_jax.parallel.preemption import PreemptionFlag, Watchdog
from fi_jax.parallel.rules import activation_scope, fetch, place, state_shardings
from fi_jax.training.callbacks import Callback, Diverged, Log, Progress, Save
from fi_jax.training.checkpoints import Checkpoints, restore_last
from fi_jax.training.members import check_members, member, shared_config, side_by_side, stack
from fi_jax.training.run_folder import RunLog, check_unlocked, diverged_at, locked
from fi_jax.training.setup import FitHead, Setup, setup
from fi_jax.training.state import Leaves, TrainState, final_leaves
from fi_jax.training.step import Batch, Metrics, jit_step
from fi_jax.training.validation import Judge, Validate
from fi_jax.weights.bundle import TrainedModel, save_model

log = logging.getLogger(__name__)

# Makes what judges a run on validation faces. Evaluation knows nothing of training, nor training of it: whoever knows
# both brings them together (`experiments.validation`).
MakeJudge = Callable[[Setup], Judge]


def run_steps(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterable[Batch],
    callbacks: Sequence[Callback],
    steps: int,
) -> TrainState:
    """Takes steps until there are `steps`, or a callback says stop. `state` is given up; the last one is returned.

    Args:
      batches: start with the batch after `state.step`.
      callbacks: called in order after every step.
    """
    for number, batch in zip(range(int(state.step) + 1, steps + 1), batches):
        state, metrics = step(state, batch)
        now = Progress(number, steps, state, metrics)
        for callback in callbacks:
            callback(now)
        if now.stop:
            break
    return state


def train(
    config: Experiment,
    folder: Path,
    hosts: Hosts,
    *,
    make_judge: MakeJudge | None = None,
    fit_head: FitHead | None = None,
    finish: bool = False,
    accept_changed_data: bool = False,
) -> int:
    """Trains until `train.steps`, from the last checkpoint in `folder` if there is one.

    Args:
      make_judge: called once where the config has `train.evaluate_every`.
      fit_head: makes the head that the run starts with, of the model that `train.init_from` names.
      finish: end a run that was stopped where its last checkpoint is: its model is written without another step.
      accept_changed_data: resume although the faces are not those that the checkpoint was trained on.

    Returns:
      The exit status: 0 when done, else the one that asks the scheduler to start the job again.

    Raises:
      UserError: before any compute, for what can be checked before.
      Diverged: the loss, its gradient or a weight is not finite; the checkpoints are from before that.
    """
    return _train([config], [folder], hosts, make_judge, fit_head, finish, accept_changed_data)


def train_members(
    configs: Sequence[Experiment], folders: Sequence[Path], hosts: Hosts, make_judge: MakeJudge | None = None
) -> int:
    """Trains all `configs` side by side into their `folders`. Returns as `train` does.

    Raises:
      UserError: before any compute, when the configs cannot share a program, or run on more than one host.
      Diverged: after all others have ended, when the loss of some member is not finite.
    """
    if hosts.count > 1:
        raise UserError("members train on one host; start one program a host with configs of its own")
    check_members(configs)
    # Who has diverged in an earlier start would do so again, and hold the others at the step that it has saved.
    gone = {i: step for i, folder in enumerate(folders) if (step := diverged_at(folder))}
    left = [i for i in range(len(configs)) if i not in gone] or list(range(len(configs)))
    log.info(f"{len(left)} member{'s' if len(left) > 1 else ''} in one program")
    try:
        status = _train([configs[i] for i in left], [folders[i] for i in left], hosts, make_judge)
    except Diverged as error:
        raise Diverged(gone | {left[i]: step for i, step in error.members.items()}, len(configs)) from None
    if gone and not status:
        raise Diverged(gone, len(configs))
    return status


def _train(
    configs: Sequence[Experiment],
    folders: Sequence[Path],
    hosts: Hosts,
    make_judge: MakeJudge | None,
    fit_head: FitHead | None = None,
    finish: bool = False,
    accept_changed_data: bool = False,
) -> int:
    if finish and not any((folders[0] / "checkpoints").glob("[0-9]*")):
        raise UserError(f"{folders[0]} has no checkpoint to finish at; train without --finish first")
    if configs[0].train.evaluate_every and make_judge is None:
        raise ValueError("train.evaluate_every needs make_judge")
    for folder in folders:
        check_unlocked(folder)
    run, states = setup(configs, hosts, fit_head)
    config, count = shared_config(configs), len(configs)
    log.info(f"run folder {folders[0]}" if count == 1 else f"run folders under {folders[0].parent}")
    check_shared(folders[0], hosts)

    def keep(name: str, i: int, state: TrainState, **info: Any) -> None:
        """Writes a run's model into its folder. All processes must call it."""
        model = finished_model(configs[i], state, run.carried, run.constants[i], run.info | info)
        if hosts.is_first:
            save_model(folders[i] / name, model)

    def keep_best(i: int, state: TrainState) -> None:
        keep("best", i, state, steps=int(state.step))

    with ExitStack() as stack_of:
        _lock(stack_of, folders, hosts)
        # Closed whatever happens: a manager left open complains when Python ends.
        checkpoints = [stack_of.enter_context(closing(Checkpoints(f, c))) for f, c in zip(folders, configs)]
        states = [*restore_last(checkpoints, states, run.carried, None if accept_changed_data else run.fingerprint)]
        start = int(states[0].step)
        logs = [RunLog(f, c, start) for f, c in zip(folders, configs)] if hosts.is_first else []
        for run_log in logs:
            stack_of.enter_context(closing(run_log))
        measured = Log(configs, [one.write for one in logs], run.kinds)
        saved = [one.about(start) for one in checkpoints] if start else []
        if start:
            log.info(f"resumed at step {start}")
            measured.restore([about.get("log", {}) for about in saved])
        judge = make_judge(run) if make_judge and config.train.evaluate_every else None
        validate = Validate(configs, judge, [one.write for one in logs], keep_best, measured)
        if start:
            validate.restore([about.get("best", {}) for about in saved])
        state = stack(states)
        state = place(state, state_shardings(state, run.mesh))
        del states
        step = jit_step(config, state, run.mesh, side_by_side if count > 1 else None)
        steps = start if finish or validate.has_ended else config.train.steps
        stack_of.enter_context(ends_together(hosts))
        preempted = stack_of.enter_context(PreemptionFlag(hosts.count))
        watchdog = stack_of.enter_context(Watchdog(config.train.stall_seconds))
        stack_of.enter_context(activation_scope(run.mesh, config.model))

        def stop(now: Progress) -> None:
            watchdog.beat()
            now.stop |= preempted.reached(now.step)

        about = {**run.info, "data": run.fingerprint}
        save = Save(checkpoints, run.carried, about, config.train.checkpoint_every, measured, validate.saved)
        if not start:
            validate.judge_all(state)
        log.info(
            f"compiling the step, then training from step {start} to {steps}" if start < steps else "no step is left"
        )
        state = run_steps(
            lambda state, batch: step(state, run.inputs, batch),
            state,
            # Nothing is read for a run that has no step left.
            run.batches(start) if start < steps else iter(()),
            [measured, validate, stop, save],
            steps,
        )
        for kept in checkpoints:
            kept.wait()
        if int(state.step) < steps and not validate.has_ended:
            log.info(f"stopped at step {int(state.step)}; the same command resumes there")
            return preempted.exit_status
    taken = int(state.step)
    ended = {"steps": taken} if taken < config.train.steps else {}
    for i, folder in enumerate(folders):
        if i in measured.diverged:
            continue
        keep("model", i, member(state, i, count), **ended)
        if hosts.is_first:
            log.info(f"done: {folder / 'model'}")
    if measured.diverged:
        raise Diverged(measured.diverged, count)
    return 0


def _lock(stack: ExitStack, folders: Sequence[Path], hosts: Hosts) -> None:
    """Holds the locks of the folders until `stack` is closed; the first process does it for all."""
    error = None
    try:
        if hosts.is_first:
            stack.enter_context(locked(folders))
    except UserError as problem:
        error = problem
    failed = bool(from_first(np.asarray(error is not None), hosts))
    if failed:
        raise error or UserError("the first process could not lock the run's folder; its log says why")


def finished_model(
    config: Experiment, state: TrainState, carried: Leaves, constants: Constants, info: dict[str, Any]
) -> TrainedModel:
    """Everything ever trained, on the host (the running average where there is one). All processes must call it.

    The decoder of stage `pretrain` has done its work and is not part of it.
    """
    everything = fetch({**carried, **final_leaves(state)})
    leaves = {
        path: np.asarray(leaf, np.float32) for path, leaf in everything.items() if not path.startswith("decoder/")
    }
    prompts, graph = np.asarray(constants.prompts), np.asarray(constants.graph)
    return TrainedModel(config, leaves, prompts, graph, info, constants.relations)
