"""Judges runs on validation faces as they train: logs what was found, keeps the best model, ends what gets no better."""

import logging
import math
from collections.abc import Callable, Sequence

from fi_jax.config import Experiment
from fi_jax.errors import UserError, require_choice
from fi_jax.training.callbacks import Line, Log, Progress
from fi_jax.training.members import member
from fi_jax.training.state import TrainState, all_finite

log = logging.getLogger(__name__)

# What a run's state is worth on validation faces, by the names that are logged; the second argument is its index.
# Every process must call it.
Judge = Callable[[TrainState, int], Line]
# Endings of the names of metrics of which less is better.
_LOWER = ("loss", "violation_rate", "mae", "mae_years", "mae_years_expected", "mae_years_median")


class Validate:
    """A callback of `run_steps`: every `train.evaluate_every` steps, and before the first, it judges every run.

    It changes nothing that training depends on, so a resumed run stays bit-equal; where the best stands is saved with
    every checkpoint.
    """

    def __init__(
        self,
        configs: Sequence[Experiment],
        judge: Judge | None,
        writers: Sequence[Callable[[int, Line], None]],
        keep_best: Callable[[int, TrainState], None],
        measured: Log,
    ):
        """`writers` get each run's lines (of many processes, the first has any); `keep_best` saves a run's model.

        Without a `judge` (no `train.evaluate_every`) nothing is judged.
        """
        self._configs, self._judge, self._writers = configs, judge, writers
        self._keep_best, self._measured = keep_best, measured
        # Of each run: the best value, its step, and how many evaluations have come since.
        self._best: list[dict[str, float]] = [{} for _ in configs]

    @property
    def has_ended(self) -> bool:
        """Whether every run has had `train.patience` evaluations without a better one."""
        patience = self._configs[0].train.patience
        left = [best for i, best in enumerate(self._best) if i not in self._measured.diverged]
        return bool(patience and left) and all(best.get("since", 0) >= patience for best in left)

    def __call__(self, now: Progress) -> None:
        """Judges where it is due; asks to stop when nothing gets better."""
        if self._judge and now.is_due(self._configs[0].train.evaluate_every):
            # What is not finite has no answers.
            self._measured.check(all_finite(now.state, int(len(self._configs) > 1)), now.step)
            self.judge_all(now.state)
            if self.has_ended:
                now.stop = True
                log.info(
                    f"ending at step {now.step}: {self._configs[0].train.patience} evaluations without a better one"
                )

    def judge_all(self, state: TrainState) -> None:
        """Judges every run at this state, logs it and keeps the model of a run that is better than ever."""
        step = int(state.step)
        for i, config in enumerate(self._configs):
            if self._judge is None or i in self._measured.diverged:
                continue
            one, name = member(state, i, len(self._configs)), config.train.best_metric
            line = self._judge(one, i)
            require_choice("train.best_metric", name, line)
            value, best = line[name], self._best[i].get("value")
            if not math.isfinite(value):
                raise UserError(
                    f"train.best_metric {name} is {value} at step {step}; choose another ({', '.join(line)})"
                )
            sign = -1 if name.rpartition("/")[2] in _LOWER else 1
            if best is None or sign * value > sign * best:
                self._best[i] = {"value": value, "step": step, "since": 0}
                self._keep_best(i, one)
            else:
                self._best[i]["since"] += 1
            if self._writers:
                self._writers[i](step, {**line, "val/best": self._best[i]["value"]})
            best_step = int(self._best[i]["step"])
            log.info(
                f"validation at step {step}: {name} {value:.4f}, best {self._best[i]['value']:.4f} at step {best_step}"
            )

    def saved(self) -> list[dict[str, float]]:
        """What a checkpoint keeps of each run."""
        return [dict(best) for best in self._best]

    def restore(self, saved: Sequence[dict[str, float]]) -> None:
        """Goes on from what `saved` returned."""
        self._best = [dict(best) for best in saved]
