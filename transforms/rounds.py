"""Which test points are used together where all of them take more memory than a worker may: in turn, in rounds over the training set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from beam_influence.transforms.elements import QueryReference


@dataclasses.dataclass(frozen=True)
class Rounds:
    """How blocks of test points are used in turn.

    Attributes:
      count: how many rounds there are at most; blocks that take less than was planned may need fewer.
      numbers: how many numbers the solutions of a round may have; 0: any number.
    """

    count: int = 1
    numbers: int = 0

    def choose(self, references: Iterable[QueryReference], number: int) -> list[QueryReference]:
        """The blocks of a round, counted from 0, in order; each block is in one round."""
        known = sorted(references, key=lambda reference: reference.key)
        if self.count == 1:
            return known
        of_block = in_turn([reference.broadcast.count_numbers(_is_solution) for reference in known], self.numbers)
        return [reference for reference, place in zip(known, of_block, strict=True) if min(place, self.count - 1) == number]


ONE_ROUND = Rounds()


def in_turn(sizes: Sequence[int], most: int) -> list[int]:
    """The round of each block, in order: one begins where a block would make the last larger than `most`. Smaller blocks never take
    more rounds (next fit is monotone: Murgolo 1988), so a plan for the largest that they can be holds."""
    rounds, number, held = [], 0, 0
    for size in sizes:
        if held and held + size > most:
            number, held = number + 1, 0
        held += size
        rounds.append(number)
    return rounds


def _is_solution(name: str) -> bool:
    return name.partition("-")[0] in ("solved", "errors")
