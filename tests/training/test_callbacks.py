"""What is logged: means over the interval, per kind of step, of one run and of members; and what diverges."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import Experiment, LossConfig, TrainConfig
from fi_jax.training.callbacks import Diverged, Log
from fi_jax.training.loop import run_steps
from fi_jax.training.state import TrainState

CONFIG = Experiment(name="a", train=TrainConfig(steps=12, log_every=4))
NO_LM = replace(CONFIG, name="b", loss=LossConfig(lm=0.0))
NAN = float("nan")


def run(
    losses, configs=(CONFIG,), kinds=("",), start=0, log=None, steps=None
) -> tuple[list[list[tuple[int, dict]]], Log]:
    """Logs steps with the given losses (a row a member where there are several), and twice as much for "lm"."""
    written: list[list] = [[] for _ in configs]
    writers = [lambda step, line, i=i: written[i].append((step, line)) for i in range(len(configs))]
    log = log or Log(configs, writers, kinds)
    log._writers = writers
    state = TrainState(jnp.asarray(start, jnp.int32), {}, (), {})

    def step(state, loss):
        loss = jnp.asarray(loss, jnp.float32)
        return state._replace(step=state.step + 1), {"lm": 2 * loss, "loss": loss, "grad_norm": loss}

    run_steps(step, state, losses, [log], steps or start + len(losses))
    return written, log


def test_a_line_is_the_mean_of_its_interval():
    (lines,), _ = run([1.0, 2.0, 3.0, 6.0, 10.0, 0.0, 0.0, 2.0, 5.0])
    # Nine steps are all there are, so the last line has one.
    assert [(step, line["loss"], line["lm"]) for step, line in lines] == [(4, 3.0, 6.0), (8, 3.0, 6.0), (9, 5.0, 10.0)]


def test_two_kinds_of_steps_have_means_of_their_own():
    (lines,), _ = run([1.0, 10.0, 3.0, 20.0], kinds=("short", "long"))
    (_, line), *rest = lines
    assert not rest and line["short/loss"] == 2.0 and line["long/loss"] == 15.0 and line["loss"] == 8.5
    assert line["short/lm"] == 4.0 and line["lm"] == 17.0


def test_an_interval_of_one_step_is_that_step_exactly():
    config = replace(CONFIG, train=replace(CONFIG.train, log_every=1))
    (lines,), _ = run([0.1], configs=(config,))
    assert lines[0][1]["loss"] == float(np.float32(0.1))


@pytest.mark.parametrize("together", [False, True])
def test_a_resumed_run_logs_the_same_means(together):
    losses = np.random.default_rng(0).random(8).astype(np.float32)
    rows = [np.array([loss, 2 * loss]) for loss in losses] if together else list(losses)
    configs = (CONFIG, NO_LM) if together else (CONFIG,)
    whole, _ = run(rows, configs)
    _, stopped = run(rows[:6], configs, steps=8)
    fresh = Log(configs, [])
    fresh.restore(json.loads(json.dumps(stopped.saved())))
    resumed, _ = run(rows[6:], configs, start=6, log=fresh)
    assert [lines[-1] for lines in resumed] == [lines[-1] for lines in whole]


def test_members_have_their_own_lines_without_terms_of_weight_zero():
    (first, second), _ = run([np.array([1.0, 3.0])] * 4, (CONFIG, NO_LM))
    assert first[0][1]["lm"] == 2.0 and second[0][1] == {"loss": 3.0, "grad_norm": 3.0}


def test_what_is_not_finite_between_two_lines_is_found_with_its_step():
    with pytest.raises(Diverged, match="not finite at step 2;") as error:
        run([1.0, NAN, 1.0, 1.0])
    assert error.value.members == {0: 2} and "--name" in str(error.value) and "\n" not in str(error.value)


def test_a_member_that_diverges_drops_out_alone():
    rows = [np.array([1.0, 1.0]), np.array([1.0, NAN])] + [np.array([1.0, 1.0])] * 6
    (first, second), log = run(rows, (CONFIG, NO_LM))
    assert [step for step, _ in first] == [4, 8] and [step for step, _ in second] == [4]
    assert np.isnan(second[0][1]["loss"]) and log.diverged == {1: 2}
