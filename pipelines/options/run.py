"""How a run is executed."""

from __future__ import annotations

import dataclasses
import functools

from beam_influence.pipelines.machine_memory import parse_bytes
from beam_influence.pipelines.options.option import FITTING, option

AUTO, OFF = "auto", "off"
_option = functools.partial(option, group="execution", changes_result=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How it runs: none of these changes the result."""

    verbose: bool = _option(False, "Tell on stderr how each layer is computed and what it is estimated to cost.")
    resume: bool = _option(
        True,
        "Go on where a run into the same OUTPUT was ended: what it finished from the same model, files and options (each pass of the "
        "curvature, the embedded test points) is not computed again.",
    )
    batch_size: int = _option(
        0,
        "Examples evaluated at once; does not change the result. 0: a power of two from 8 to 512, as many as 256 MiB hold by what the "
        "model's layers give.",
        least=0,
    )
    query_block_size: int = _option(
        1024, "Test points in a block (one row group of top_k); does not change the result.", commands=("run", "query"), least=1
    )
    shard_size: int = _option(
        64 << 20,
        "Bytes of a file that one task reads: a larger one is split, so that several workers read it at once (a compressed one can't be "
        "split, Parquet is at row groups). Does not change the result.",
        least=1,
    )
    threads: int = _option(0, "CPU threads of TensorFlow in each worker process; 0: all cores.", least=0)
    max_worker_memory: str | None = _option(
        None,
        "Memory of one worker process, such as 8GB. Half of it holds solved test points: where all of them need more, they are kept "
        "unsolved in the basis of kfac and ekfac, or as factors, if --score_tolerance allows it, and scored in rounds over the training "
        "set; --passes solve them in rounds too. A sixteenth, at most 256 MiB, is for sums over groups. Default: this machine's memory "
        "(its container's) divided by its cores.",
        commands=("run",),
    )
    decoded_cache: str = _option(
        "auto",
        "Whether the first pass over the training set leaves its decoded examples in the work folder, where later passes read them: auto, "
        "where that is quicker by what the first examples took, and fits half of the free disk; off; or the most bytes, such as 20GB: "
        "always, where they fit. Does not change the result.",
        commands=FITTING,
    )
    work_dir: str | None = _option(None, "Temporary files; all workers must reach it. Default: OUTPUT/.work.")

    def check(self) -> None:
        """Raises `ValueError` where one is wrong."""
        if self.decoded_cache not in (AUTO, OFF):
            try:
                parse_bytes(self.decoded_cache)
            except ValueError as error:
                raise ValueError(f"--decoded_cache {error}, or auto, or off") from error
