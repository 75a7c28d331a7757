"""What happens after a step besides the next one: measuring, logging, saving, stopping."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fi_jax.config import LOSS_TERMS, Experiment
from fi_jax.errors import UserError
from fi_jax.training.checkpoints import Checkpoints
from fi_jax.training.members import member
from fi_jax.training.state import Leaves, TrainState, all_finite
from fi_jax.training.step import Metrics

log = logging.getLogger(__name__)

Line = dict[str, float]


@dataclass
class Progress:
    """Where a run is after a step. `stop`, set by a callback, ends it after the callbacks."""

    step: int
    steps: int
    state: TrainState
    # Scalars; of several members, one row each (`m`).
    metrics: Metrics
    stop: bool = False

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.step % every == 0 or self.step == self.steps


Callback = Callable[[Progress], None]


class Diverged(UserError):
    """A loss, a gradient or a weight is not finite. `members` are the runs' indices and the steps where it was seen."""

    def __init__(self, members: dict[int, int], of: int):
        self.members = members
        who = "" if of == 1 else f"of member {', '.join(map(str, members))} "
        when = ", ".join(map(str, dict.fromkeys(members.values())))
        super().__init__(
            f"the loss, its gradient or a weight {who}is not finite at step {when}; checkpoints are from before it. The "
            "same command would end here again: lower train.learning_rate or train.clip_norm under another --name, or "
            "end this run at its last checkpoint with --finish"
        )


class Log:
    """Logs means over every `train.log_every` steps, one set a kind of step; sums stay on the device until then.

    It also notices the first step whose loss or gradient is not finite, without waiting for the device.
    """

    def __init__(
        self,
        configs: Sequence[Experiment],
        writers: Sequence[Callable[[int, Line], None]],
        kinds: Sequence[str] = ("",),
    ):
        """`writers` get each member's lines; `kinds` are the names of the steps that take turns."""
        self.diverged: dict[int, int] = {}
        self._configs, self._writers, self._kinds = configs, writers, kinds
        self._sums: dict[str, Metrics] = {}
        self._counts: dict[str, int] = {}
        # The first step that was not finite; 0 for none. A scalar, or one row a member.
        self._bad: Array | np.ndarray = np.zeros(() if len(configs) == 1 else len(configs), np.int32)
        self._clock, self._clock_step = time.monotonic(), -1

    def __call__(self, now: Progress) -> None:
        """Adds a step's metrics, and writes a line where one is due."""
        kind = self._kinds[(now.step - 1) % len(self._kinds)]
        self._sums[kind], self._bad = _add(self._sums.get(kind), self._bad, now.metrics, now.state.step)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._clock_step < 0:
            self._clock_step = now.step - 1
        if not now.is_due(self._configs[0].train.log_every):
            return
        lines = self._lines()
        self._sums, self._counts = {}, {}
        # Of many processes, the first alone writes.
        for i, (write, line) in enumerate(zip(self._writers, lines)):
            if i not in self.diverged:
                write(now.step, line)
        rate = (now.step - self._clock_step) / max(time.monotonic() - self._clock, 1e-9)
        self._clock, self._clock_step = time.monotonic(), now.step
        log.info(_progress(now, lines, rate))
        self.check()

    def check(self, finite: Array | np.ndarray | None = None, step: int = 0) -> None:
        """Notes runs that have diverged; raises `Diverged` when none is left. Waits for the device.

        Args:
          finite: whether each run's weights are finite after `step`.
        """
        bad = np.asarray(self._bad) if finite is None else np.where(np.asarray(finite), self._bad, step)
        new = {i: int(at) for i, at in enumerate(np.atleast_1d(bad)) if at and i not in self.diverged}
        self.diverged |= new
        if len(self.diverged) == len(self._configs):
            raise Diverged(self.diverged, len(self._configs))
        for i, at in new.items():
            log.warning(f"member {i} ({self._configs[i].name}) is not finite at step {at}; the others go on without it")

    def _sums_of_members(self) -> list[dict[str, Line]]:
        """Each member's sums by kind of step, with the names it has alone: a term of weight 0 is not there."""
        sums = {kind: jax.device_get(metrics) for kind, metrics in self._sums.items()}
        off = [{name for name in LOSS_TERMS if not getattr(one.loss, name)} for one in self._configs]
        return [
            {
                kind: {name: float(np.atleast_1d(rows)[i]) for name, rows in metrics.items() if name not in unused}
                for kind, metrics in sums.items()
            }
            for i, unused in enumerate(off)
        ]

    def _lines(self) -> list[Line]:
        """Each member's means. Of several kinds of steps, "loss" is the mean of theirs, "short/loss" that of one."""
        lines = []
        for sums in self._sums_of_members():
            means = {kind: {name: s / self._counts[kind] for name, s in of.items()} for kind, of in sums.items()}
            line: Line = {}
            for name in dict.fromkeys(name for of in means.values() for name in of):
                line[name] = float(np.mean([of[name] for of in means.values() if name in of]))
            if len(self._kinds) > 1:
                line |= {f"{kind}/{name}": value for kind, of in means.items() for name, value in of.items()}
            lines.append(line)
        return lines

    def saved(self) -> list[dict]:
        """What was summed since the last line, one JSON value a member: a resumed run logs the same means."""
        return [
            {kind: {"steps": self._counts[kind], "sums": of} for kind, of in sums.items()}
            for sums in self._sums_of_members()
        ]

    def restore(self, saved: Sequence[dict]) -> None:
        """Goes on from what `saved` returned, here or in runs of their own."""
        for kind, of in saved[0].items():
            self._counts[kind] = of["steps"]
            names = dict.fromkeys(name for one in saved for name in one[kind]["sums"])
            rows: dict[str, Any] = {
                name: np.asarray([one[kind]["sums"].get(name, 0) for one in saved], np.float32) for name in names
            }
            self._sums[kind] = rows if len(saved) > 1 else {name: value[0] for name, value in rows.items()}


class Save:
    """Saves every `train.checkpoint_every` steps, at the end, and when told to stop; never what is not finite."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoints],
        carried: Leaves,
        info: dict[str, Any],
        every: int,
        log: Log,
        best: Callable[[], list[Line]],
    ):
        self._checkpoints, self._carried, self._info = checkpoints, carried, info
        self._every, self._log, self._best = every, log, best

    def __call__(self, now: Progress) -> None:
        """Starts saving where it is due."""
        if not (now.stop or now.is_due(self._every)):
            return
        count = len(self._checkpoints)
        self._log.check(all_finite(now.state, int(count > 1)), now.step)
        for i, (checkpoints, sums, best) in enumerate(
            zip(self._checkpoints, self._log.saved(), self._best(), strict=True)
        ):
            if i not in self._log.diverged:
                about = {**self._info, "log": sums, "best": best}
                checkpoints.save(member(now.state, i, count), self._carried, about)


@jax.jit
def _add(
    sums: Metrics | None, bad: Int[Array, "..."], metrics: Metrics, step: Int[Array, ""]
) -> tuple[Metrics, Int[Array, "..."]]:
    """Adds one step's metrics, and notes the step where it is the first that is not finite."""
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    bad = jnp.where((bad == 0) & ~finite, step, bad)
    return metrics if sums is None else jax.tree.map(jnp.add, sums, metrics), bad


def _progress(now: Progress, lines: Sequence[Line], rate: float) -> str:
    """One run's terms, or the range of the members' losses."""
    if len(lines) == 1:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in lines[0].items() if "grad_norm" not in name)
    else:
        losses = [line["loss"] for line in lines if np.isfinite(line["loss"])] or [np.nan]
        shown = f"loss {min(losses):.4f} to {max(losses):.4f}"
        shown += f" ({len(lines) - len(losses)} not finite)" if len(losses) < len(lines) else ""
    left = (now.steps - now.step) / max(rate, 1e-9) / 60
    return f"step {now.step}/{now.steps}  {shown}  {rate:.2f} steps/s  {left:.1f} min left"
