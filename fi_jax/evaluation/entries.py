"""Finding results inside a summary: by data set, task, source and setting, with a clear word when there are none."""

from collections.abc import Iterator
from dataclasses import dataclass

from fi_jax.data.datasets import dataset_title
from fi_jax.errors import UserError, require_choice
from fi_jax.evaluation.tables import SOURCE_TITLES, task_title


@dataclass(frozen=True)
class Result:
    """One task of one entry of a summary."""

    dataset: str
    task: str
    source: str
    setting: str
    values: dict

    @property
    def who(self) -> str:
        """Who answered, in words: "LLM, training-free"."""
        return f"{SOURCE_TITLES[self.source]}, {self.setting}"

    @property
    def what(self) -> str:
        """What was asked, in words: "UTKFace, age group"."""
        return f"{dataset_title(self.dataset)}, {task_title(self.task)}"


def results_of(summary: dict) -> Iterator[Result]:
    """Yields every task result of a summary, "rules" among them."""
    for entry in summary["entries"]:
        tasks = entry["tasks"] | ({"rules": entry["rules"]} if entry.get("rules") else {})
        for task, values in tasks.items():
            yield Result(entry["dataset"], task, entry["source"], entry["setting"], values)


def select(summary: dict, needs: str = "", **wanted: str | None) -> list[Result]:
    """Returns the results that match every given field and hold the key `needs`.

    Raises:
      UserError: a field has a value that the summary does not hold, or nothing is left.
    """
    found = [r for r in results_of(summary) if not needs or r.values.get(needs)]
    for name, value in wanted.items():
        if value is not None:
            require_choice(name.replace("_", " "), value, dict.fromkeys(getattr(r, name) for r in found))
            found = [r for r in found if getattr(r, name) == value]
    if not found:
        raise UserError(f"the summary holds no result with {needs or 'any task'} for this choice")
    return found
