"""Words and numbers as people read them: names of tasks, metrics and sources, percent and years."""

from typing import Literal, get_args

from fi_jax.evaluation.table import BLANK
from fi_jax.labels.questions import OWN_CHOICE, OWN_NUMBER

Setting = Literal["training-free", "fine-tuned"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)
SOURCE_TITLES = {"head": "alignment head", "llm": "LLM", "free": "LLM, free-form"}
TASK_TITLES = {
    "attribute": "attributes",
    "age_group": "age group",
    "age_years": "age in years",
    "gender": "gender",
    "race": "race",
    "expression": "expression",
    "rules": "rules",
}
# A prediction's own groups, by which results are broken down.
GROUP_TITLES = {"gender": "gender", "race": "race", "age_group": "age"}
_METRIC_TITLES = {
    "mae_years": "MAE (years)",
    "mae_years_expected": "MAE, expected value (years)",
    "mae_years_median": "MAE, median (years)",
    "mae": "MAE",
    "macro_f1": "macro-F1",
    "mean_f1": "mean F1",
    "violation_rate": "violation rate",
}


def task_title(name: str) -> str:
    """A task in words."""
    return TASK_TITLES.get(name, name.removeprefix(OWN_CHOICE).removeprefix(OWN_NUMBER).replace("_", " "))


def metric_title(name: str) -> str:
    """A metric in words."""
    return _METRIC_TITLES.get(name, name.replace("_", " "))


def setting_of(seen: bool) -> Setting:
    """The paper's name of a setting: "fine-tuned" where the model saw the data set's train split."""
    return SETTINGS[seen]


def who(source: str, setting: str) -> str:
    """Who answered, in words: "LLM, training-free"."""
    return f"{SOURCE_TITLES.get(source, source)}, {setting}"


def format_value(metric: str, value: float | None) -> str:
    """A number as tables print it: percent with one decimal, or an error with two."""
    if value is None:
        return BLANK
    return f"{value:.2f}" if metric.startswith("mae") else f"{100 * value:.1f}"


def format_interval(metric: str, value: float | None, low: float | None, high: float | None) -> str:
    """A number with its interval: "87.5 [80.0, 93.3]"."""
    edges = "" if low is None else f" [{format_value(metric, low)}, {format_value(metric, high)}]"
    return format_value(metric, value) + edges


def format_difference(metric: str, difference: float) -> str:
    """A difference as tables print it, always with its sign."""
    return ("+" if difference >= 0 else "−") + format_value(metric, abs(difference))
