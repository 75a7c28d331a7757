"""Many questions as token lists -> branches: questions that open alike and are about as long, to be asked together.

What a branch opens with is run once; behind it, little is padding. Ours.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

# Questions open alike when so many first tokens are the same ("Is this", "Does this"), and a branch is made of so many of them.
_ALIKE = 2
_MANY = 4
# The longest question of a branch is at most so many times as long as its shortest.
_LONGER = 1.5


class Branch(NamedTuple):
    """Questions of one branch, by their numbers, and the tokens that all of them open with."""

    opening: tuple[int, ...]
    which: tuple[int, ...]


def branches(segments: Sequence[Sequence[int]]) -> list[Branch]:
    """Divides questions, each a segment of tokens that is not empty, into branches; every question is in one.

    Something of each question is left behind the opening.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, tokens in enumerate(segments):
        alike.setdefault(tuple(tokens[:_ALIKE]), []).append(number)
    made, others = [], []
    for some in alike.values():
        if len(some) < _MANY:
            others += some
            continue
        opening = tuple(os.path.commonprefix([tuple(segments[i])[:-1] for i in some]))
        made += [Branch(opening, which) for which in _by_length(segments, some)]
    return made + [Branch((), which) for which in _by_length(segments, others)]


def _by_length(segments: Sequence[Sequence[int]], which: Sequence[int]) -> list[tuple[int, ...]]:
    groups: list[list[int]] = []
    for number in sorted(which, key=lambda i: len(segments[i])):
        if groups and len(segments[number]) <= _LONGER * len(segments[groups[-1][0]]):
            groups[-1].append(number)
        else:
            groups.append([number])
    return [tuple(group) for group in groups]
