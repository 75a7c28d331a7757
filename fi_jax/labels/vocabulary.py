"""Labels (facial characteristics), groups of labels, and the vocabularies made of them."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from fi_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from fi_jax.labels.questions import Question
    from fi_jax.labels.rules import Rule

GroupKind = Literal["exactly_one", "at_most_one"]


@dataclass(frozen=True)
class Label:
    """One facial characteristic that is true or false of a face.

    `name` is its key everywhere ("Smiling", "race:White", "age:20-29"); `prompt` is the sentence
    that the text encoder turns into T_p^0.
    """

    name: str
    prompt: str


@dataclass(frozen=True)
class Group:
    """Labels of which exactly (or at most) one holds of a face: age groups, hair colours."""

    name: str
    labels: tuple[str, ...]
    kind: GroupKind


@dataclass(frozen=True)
class Vocabulary:
    """An ordered set of labels with its groups. The order is the order of every `n` axis."""

    name: str
    labels: tuple[Label, ...]
    groups: tuple[Group, ...] = field(default=())
    # Questions and rules about labels of one's own; those about built-in labels stand in tables of their own.
    questions: "tuple[Question, ...]" = field(default=())
    rules: "tuple[Rule, ...]" = field(default=())
    # Questions of one's own that are answered in free text, in every wording.
    open_questions: tuple[str, ...] = ()

    def __post_init__(self):
        names = [label.name for label in self.labels]
        if len(set(names)) != len(names):
            raise UserError(f"vocabulary '{self.name}' names a label twice")
        for group in self.groups:
            for name in group.labels:
                if name not in names:
                    raise UserError(
                        f"group '{group.name}' of vocabulary '{self.name}' names the unknown label '{name}'"
                    )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Label names in order."""
        return tuple(label.name for label in self.labels)

    @cached_property
    def places(self) -> dict[str, int]:
        """Position of every label by its name."""
        return {name: i for i, name in enumerate(self.names)}

    def index(self, name: str) -> int:
        """Position of a label; an unknown name is a `UserError` with a guess."""
        if name not in self.places:
            raise UserError(f"label '{name}' is not in vocabulary '{self.name}'{did_you_mean(name, self.names)}")
        return self.places[name]

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __len__(self) -> int:
        return len(self.labels)
