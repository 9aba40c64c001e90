"""What is written."""

from __future__ import annotations

import dataclasses
import functools

from beam_influence.pipelines.options.option import REQUIRED, option

ONLY_CURVATURE = "curvature"
ONLY_INDEX = "index"


_option = functools.partial(option, group="results")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """What is written."""

    output: str = _option(REQUIRED, "Folder for the results: Parquet tables and manifest.json.", names=True, changes_result=False)
    outputs: str = _option(
        "top_k",
        "Which tables to write, separated by commas: top_k, self_influence, self_influence_top_k, group_influence, "
        "group_self_influence, group_vectors, scores, influence_vectors. Or alone: 'curvature', as the command "
        "fit; 'index', as the command index.",
        commands=("run", "query"),
    )
    index_dtype: str = _option(
        "float32",
        "How an index stores its numbers: float32; float16, half the space, with errors of about 0.0005 of the largest score; int8, a byte "
        "and two bits for each, with errors of about 0.002. Rows are scaled one by one; query tells the error (index_error).",
        choices=("float32", "float16", "int8"),
        commands=("run", "index"),
    )
    update: bool = _option(
        False,
        "Of the command index: add to the index in OUTPUT the files of --train that it lacks, with its own curvature; the others are only "
        "checked to be the same (by size and SHA-256).",
        commands=("run", "index"),
    )
    search: str = _option(
        "linear",
        "How an index is searched: linear, in float64, or faiss, for top_k in float32 (pip install faiss-cpu).",
        choices=("linear", "faiss"),
        commands=("run", "query"),
    )
    top_k: int = _option(10, "How many training examples to keep for each test point.", commands=("run", "query"), least=1)
    order: str = _option(
        "descending",
        "descending: the most helpful examples first; ascending: the most harmful first.",
        choices=("descending", "ascending"),
        commands=("run", "query"),
    )
    uncertainty: bool = _option(
        False,
        "Tell how sure each score is: top_k and scores have its standard_error, top_k also whether a row is stable, over the projection of "
        "random_projection or what is left to solve of gauss_newton_cg. What another model would say: the command ensemble.",
        commands=("run",),
    )
    per_token: bool = _option(
        False,
        "Of a model of sequences: top_k tells influence by position too, of the training example and of the test point, and what of it "
        "is at no position (one more pass over the files that have the examples).",
        commands=("run",),
    )
    overwrite: bool = _option(False, "Replace the finished run that OUTPUT holds.", changes_result=False)

    def check(self) -> None:
        """Raises `ValueError` where one is wrong."""
        from beam_influence.influence_ops.scoring.outputs.table import OUTPUTS

        unknown = [name for name in self.output_tables if name not in OUTPUTS]
        if unknown or not (self.output_tables or self.only_curvature or self.only_index):
            raise ValueError(f"--outputs {self.outputs!r} must name some of {', '.join(OUTPUTS)}; separate them by commas")
        if self.update and not self.only_index:
            raise ValueError("--update adds to an index; use it with the command index")

    @property
    def only_curvature(self) -> bool:
        """Whether the run ends with the saved curvature (the command `fit`)."""
        return self.outputs.strip() == ONLY_CURVATURE

    @property
    def only_index(self) -> bool:
        """Whether the run makes an index, or adds to one (the command `index`)."""
        return self.outputs.strip() == ONLY_INDEX

    @property
    def output_tables(self) -> tuple[str, ...]:
        """The names in `outputs`; none for `fit` and `index`."""
        if self.only_curvature or self.only_index:
            return ()
        return tuple(name.strip() for name in self.outputs.split(",") if name.strip())
