"""The plan of a run in a line or two, from what is known before it starts: no sample is run for it."""

from __future__ import annotations

from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.machine_memory import size_text
from beam_influence.pipelines.prepare import PreparedRun
from beam_influence.pipelines.resume import EMBED, OPERATOR, stage_of_pass
from beam_influence.transforms.file_list import FileList


def count_passes(config: InfluenceConfig, prepared: PreparedRun) -> int:
    """How often the training set, or the saved vectors in its place, is read; what an earlier run has finished is not read again."""
    finished = set() if prepared.resumed is None else set(prepared.resumed.finished)
    fitted = 0
    if prepared.curvature_path is None and OPERATOR not in finished:
        passes = config.make_curvature().passes
        fitted = passes - max((number for number in range(1, passes) if stage_of_pass(number) in finished), default=0)
    solving = config.make_curvature().solves * config.solver_passes * prepared.queries.solving.count if prepared.test else 0
    scoring = prepared.queries.rounds.count if config.output_tables else int(config.only_index)
    return fitted + solving + int(config.second_order_groups) + (0 if prepared.candidates else scoring + int(config.per_token))


def short_plan(config: InfluenceConfig, prepared: PreparedRun) -> str:
    """Passes and bytes, and how test points fit where that was decided."""
    finished = set() if prepared.resumed is None else set(prepared.resumed.finished)
    of_train = (count_passes(config, prepared), prepared.train, "")
    of_candidates = (prepared.queries.rounds.count + int(config.per_token), prepared.candidates, "candidates, ")
    readings = [reading for reading in (of_train, of_candidates) if reading[1]]
    read = sum(passes * files.total_bytes for passes, files, _ in readings)
    read += prepared.test.total_bytes * (prepared.queries.test_readings - (EMBED in finished))
    line = f"{'; '.join(_reading(*reading) for reading in readings)}; {size_text(read)} to read"
    return "\n".join([line, *([prepared.queries.text] if prepared.queries.is_split else [])])


def _reading(passes: int, files: FileList, what: str) -> str:
    count = len(files)
    return f"{passes:,} pass{'es' * (passes != 1)} over {count:,} file{'s' * (count != 1)} of {what}{size_text(files.total_bytes)}"
