"""What a batch and a file of each stage cost, from the progress that a run reports while it goes on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from beam_influence.pipelines.progress_bar import ProgressListener


class Event(NamedTuple):
    """That a stage has used a batch (`shards` 0), or ended a shard (`shards` above 0).

    Attributes:
      wall, cpu: seconds of a clock, and of the process's processors.
    """

    stage: str
    wall: float
    cpu: float
    examples: int
    shards: float


class Timeline(ProgressListener):
    """Notes all progress of a run in this process, with its time."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def update(self, stage: str, examples: int, shards: float) -> None:
        self.events.append(Event(stage, time.monotonic(), time.process_time(), examples, shards))


class Seconds(NamedTuple):
    """Seconds of a clock, and of all processors that are at work."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: tuple[float, ...]) -> Seconds:  # type: ignore[override]
        return Seconds(self.wall + other[0], self.cpu + other[1])

    def __sub__(self, other: tuple[float, ...]) -> Seconds:
        return Seconds(self.wall - other[0], self.cpu - other[1])

    def __mul__(self, factor: float) -> Seconds:  # type: ignore[override]
        return Seconds(self.wall * factor, self.cpu * factor)

    def at_least(self, least: float) -> Seconds:
        """Neither of them below `least`."""
        return Seconds(max(self.wall, least), max(self.cpu, least))


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What a stage took of a sample.

    Attributes:
      examples, shards: how many there were.
      of_example, of_shard: of one more of them, once everything is compiled.
    """

    examples: int
    shards: int
    of_example: Seconds
    of_shard: Seconds

    def seconds(self, examples: float, shards: float) -> Seconds:
        """What so many of them take, without what the first batches take besides."""
        return self.of_example * examples + self.of_shard * shards


def stage_costs(events: Iterable[Event]) -> dict[str, StageCost]:
    """The cost of each stage, in the order in which they ran."""
    of_stage: dict[str, list[Event]] = {}
    for event in events:
        of_stage.setdefault(event.stage, []).append(event)
    return {stage: _cost(found) for stage, found in of_stage.items()}


def _cost(events: list[Event]) -> StageCost:
    examples = sum(event.examples for event in events)
    ends = [event for event in events if event.shards]
    batches = [
        (event.examples, Seconds(event.wall - before.wall, event.cpu - before.cpu))
        for before, event in zip(events, events[1:], strict=False)
        if event.examples and not before.shards
    ]
    late = batches[len(batches) // 2 :]  # the functions of the first ones are compiled meanwhile
    whole = _whole_shards(events)
    if late:
        of_example = _sum(spent for _, spent in late) * (1 / sum(count for count, _ in late))
    elif any(count for count, _ in whole):
        of_example = _sum(spent for _, spent in whole) * (1 / sum(count for count, _ in whole))
    else:
        of_example = Seconds()
    of_shard = Seconds()
    if whole:
        rest = _sum(spent for _, spent in whole) - of_example * sum(count for count, _ in whole)
        of_shard = (rest * (1 / len(whole))).at_least(0.0)
    return StageCost(examples, len(ends), of_example, of_shard)


def _whole_shards(events: list[Event]) -> list[tuple[int, Seconds]]:
    """Examples and seconds of each shard but the first half of them."""
    shards: list[tuple[int, Seconds]] = []
    last, examples = None, 0
    for event in events:
        examples += event.examples
        if event.shards:
            if last is not None:
                shards.append((examples, Seconds(event.wall - last.wall, event.cpu - last.cpu)))
            last, examples = event, 0
    return shards[len(shards) // 2 :]


def _sum(seconds: Iterable[Seconds]) -> Seconds:
    total = Seconds()
    for each in seconds:
        total = total + each
    return total


def steady(costs: Mapping[str, StageCost]) -> Seconds:
    """What the sample took of what grows with the files."""
    return _sum(cost.seconds(cost.examples, cost.shards) for cost in costs.values())
