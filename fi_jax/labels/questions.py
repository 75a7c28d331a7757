"""Questions about a face, each with a closed answer that one token of the LLM gives."""

from dataclasses import dataclass

# What a question is about; of one's own table, a choice is of the family "choice:NAME", a number "number:NAME".
FAMILIES = ("attribute", "gender", "race", "age_group", "age_years", "expression")
OWN_CHOICE = "choice:"
OWN_NUMBER = "number:"


@dataclass(frozen=True)
class Question:
    """One closed question.

    A yes/no question has options ("Yes", "No") and labels (label, None): P(label) = P(Yes).
    A single-choice question has one lettered option a label; `answers` are the letters, each one
    token, and `text` lists the options.
    """

    # Unique: the label's name for attributes, else "gender", "race:utkface", "age_group", ...
    name: str
    # One of `FAMILIES`, "choice:NAME" or "number:NAME".
    family: str
    # The words put to the model, options included.
    text: str
    # What a person reads as the answer.
    options: tuple[str, ...]
    # What the model says: "Yes"/"No", or "A", "B", ...
    answers: tuple[str, ...]
    # The label each option asserts; None asserts nothing (the "No" of a yes/no question).
    labels: tuple[str | None, ...]
    # Other wordings of a question of one's own.
    also: tuple[str, ...] = ()
    # Whether it came with a table of one's own.
    is_own: bool = False

    @property
    def is_binary(self) -> bool:
        """Whether this is a yes/no question about one label."""
        return self.labels[-1] is None

    @property
    def stem(self) -> str:
        """The words without the options: what a person reads."""
        return self.text if self.is_binary else f"{self.text.partition('?')[0]}?"

    @property
    def subject(self) -> str:
        """The label that the first option asserts: what a yes/no question is about."""
        first = self.labels[0]
        if first is None:
            raise ValueError(f"the first option of question '{self.name}' asserts no label")
        return first


def yes_no(name: str, text: str) -> Question:
    """Makes the yes/no question about the label `name`."""
    return Question(name, "attribute", text, ("Yes", "No"), ("Yes", "No"), (name, None))


def single_choice(name: str, family: str, text: str, options: tuple[str, ...], labels: tuple[str, ...]) -> Question:
    """Makes a lettered question; the options are listed after `text` as "A White, B Black, ..."."""
    letters = tuple(chr(ord("A") + i) for i in range(len(options)))
    listed = ", ".join(f"{letter} {option}" for letter, option in zip(letters, options, strict=True))
    return Question(name, family, f"{text} {listed}.", options, letters, labels)
