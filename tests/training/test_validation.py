"""Validation while training: when it happens, what is kept as the best, when it ends, and that a resumed run agrees."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from fi_jax.config import Experiment, TrainConfig
from fi_jax.errors import UserError
from fi_jax.training.callbacks import Log
from fi_jax.training.loop import run_steps
from fi_jax.training.state import TrainState
from fi_jax.training.validation import Validate

CONFIG = Experiment(train=TrainConfig(steps=12, evaluate_every=2, patience=2, best_metric="val/mae"))


def run(values, config=CONFIG, start=0, before=None):
    """Trains on nothing; `values` are the metric at steps 0, 2, 4, … Returns lines, steps kept as best, last step."""
    lines, kept = [], []
    judge = lambda state, i: {"val/mae": values[int(state.step) // 2], "val/accuracy": 0.5}  # noqa: E731
    log = Log((config,), [])
    validate = Validate(
        (config,), judge, [lambda step, line: lines.append((step, line))], lambda i, s: kept.append(int(s.step)), log
    )
    state = TrainState(jnp.asarray(start, jnp.int32), {"bias": jnp.zeros(1)}, (), {})
    if before is None:
        validate.judge_all(state)
    else:
        validate.restore(before)
    one = jnp.ones(())
    state = run_steps(
        lambda state, batch: (state._replace(step=state.step + 1), {"loss": one, "grad_norm": one}),
        state,
        range(100),
        [log, validate],
        config.train.steps,
    )
    return lines, kept, int(state.step), validate


def test_the_best_is_kept_and_what_gets_no_better_ends():
    lines, kept, last, validate = run([5.0, 4.0, 4.5, 3.0, 3.0, 3.5, 1.0])
    assert kept == [0, 2, 6] and last == 10 and validate.has_ended
    assert [(step, line["val/best"]) for step, line in lines] == [(0, 5), (2, 4), (4, 4), (6, 3), (8, 3), (10, 3)]


def test_without_patience_it_goes_on_to_the_end():
    config = replace(CONFIG, train=replace(CONFIG.train, patience=0, best_metric="val/accuracy"))
    lines, kept, last, validate = run([1.0] * 7, config)
    assert last == 12 and kept == [0] and not validate.has_ended and len(lines) == 7


def test_a_resumed_run_counts_on():
    values = [5.0, 4.0, 4.5, 4.6, 1.0, 1.0, 1.0]
    *_, whole, _ = run(values)
    short = replace(CONFIG, train=replace(CONFIG.train, steps=4))
    *_, validate = run(values, short)
    _, kept, last, resumed = run(values, start=4, before=validate.saved())
    assert last == whole == 6 and kept == [] and resumed.has_ended


@pytest.mark.parametrize(
    ("changes", "values", "says"),
    [({"best_metric": "val/acuracy"}, [1.0], "did you mean 'val/accuracy'"), ({}, [float("nan")], "val/mae is nan")],
)
def test_a_metric_that_cannot_rank_is_refused_before_the_first_step(changes, values, says):
    with pytest.raises(UserError, match=says):
        run(values, replace(CONFIG, train=replace(CONFIG.train, **changes)))
