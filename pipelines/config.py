"""All options of a run, and which of them go together."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import typing
from typing import Any

from beam_influence.pipelines.check_candidates import check_candidates
from beam_influence.pipelines.check_per_token import check_per_token
from beam_influence.pipelines.check_precision import check_precision
from beam_influence.pipelines.check_segments import check_segments
from beam_influence.pipelines.check_uncertainty import check_uncertainty
from beam_influence.pipelines.choosing.rules import AUTO, check_auto
from beam_influence.pipelines.machine_memory import parse_bytes
from beam_influence.pipelines.options.data import DataOptions
from beam_influence.pipelines.options.method import MethodOptions, own_fields
from beam_influence.pipelines.options.model import ModelOptions
from beam_influence.pipelines.options.option import check_values
from beam_influence.pipelines.options.results import ResultOptions
from beam_influence.pipelines.options.run import RunOptions

if typing.TYPE_CHECKING:  # when it is needed, it is imported: --help need not wait for TensorFlow
    from beam_influence.influence_ops.curvature import Curvature
    from beam_influence.influence_ops.scoring.outputs.base import OutputOptions
    from beam_influence.influence_ops.scoring.query_block import QueryArray
    from beam_influence.influence_ops.scoring.ranking import Order
    from beam_influence.influence_ops.scoring.scores import ScoreOptions

_GROUPS = (DataOptions, ModelOptions, MethodOptions, ResultOptions, RunOptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfluenceConfig(RunOptions, ResultOptions, MethodOptions, ModelOptions, DataOptions):
    """Everything that decides the result of a run, and how it is executed.

    Raises:
      ValueError: an option is wrong; the message names it, its value and what to write instead.
    """

    def __post_init__(self) -> None:
        check_values(self)
        if self.curvature == AUTO:  # what is chosen is checked then
            check_auto(self)
            return
        for group in _GROUPS:
            group.check(self)
        own_options(self.curvature_kind)
        self._check_sources()
        self._check_groups()
        self._check_passes()
        self._check_saved()
        self._check_idle()
        if self.checkpoint_paths and (self.removal != "first_order" or self.second_order_groups):
            raise ValueError("--checkpoints sums influence of first order; leave --removal and --second_order_groups out")
        self._check_memory()
        check_precision(self)
        check_per_token(self)
        self.make_curvature()
        check_uncertainty(self)
        check_segments(self)
        self.score_options()
        takes_rank = self.curvature_kind.takes_rank
        if self.rank is not None and (takes_rank == "never" or (takes_rank == "index" and not self.only_index)):
            raise ValueError(
                f"--rank is of a matrix's eigenvalues; use it with --curvature gauss_newton, exact or arnoldi, not {self.curvature} "
                "(which takes it for an index alone)"
            )

    def _check_sources(self) -> None:
        """Whether the files that the outputs are made from are given."""
        from beam_influence.influence_ops.scoring.outputs.table import tables_of_test_points

        of_tests = [name for name in self.output_tables if name in tables_of_test_points()]
        if of_tests and self.test is None:
            raise ValueError(f"--outputs {of_tests[0]} needs --test, the test points to explain")
        if self.only_index:
            self._check_index()
        if self.index is not None and self.normalize != "none":
            raise ValueError("an index holds plain influence; leave --normalize out")
        if self.search == "faiss":
            if self.index is None or self.output_tables != ("top_k",):
                raise ValueError("--search faiss finds the top_k in an index; use it with --index and --outputs top_k, or leave it out")
            if importlib.util.find_spec("faiss") is None:
                raise ValueError("--search faiss needs FAISS; install it (pip install faiss-cpu), or use --search linear")
        if self.index is not None:
            self._check_in_place_of_train("index", self.index)
        elif self.influence_vectors_path is not None:
            self._check_in_place_of_train("influence_vectors_path", self.influence_vectors_path)
        if self.candidates is not None:
            check_candidates(self)
        elif self.train is None and self.index is None and self.influence_vectors_path is None:
            raise ValueError("--train is needed: the files of the training set")

    def _check_in_place_of_train(self, option: str, folder: str) -> None:
        """Whether the other options go with an index, or with saved influence vectors."""
        from beam_influence.influence_ops.scoring.outputs.table import tables_of_scores

        read = ("train", "curvature_path", "group_feature", "influence_vectors_path")
        clashing = [name for name in read if name != option and getattr(self, name) is not None]
        if clashing:
            raise ValueError(f"--{option} takes the place of --{clashing[0]}; leave that out")
        if folder.rstrip("/") == self.output.rstrip("/"):
            raise ValueError(f"--output {self.output!r} would replace the {option.split('_path')[0]} that is read; give another folder")
        others = [name for name in self.output_tables if name not in tables_of_scores()]
        if others or self.removal != "first_order":
            raise ValueError(
                f"--{option} gives {' and '.join(tables_of_scores())}, first order; "
                f"for {others[0] if others else 'removal ' + self.removal} give --train"
            )

    def _check_index(self) -> None:
        """Whether the options of an index that is made, or added to, fit each other."""
        from beam_influence.influence_ops.curvature import CURVATURES

        if self.test is not None:
            raise ValueError("--test is of the command query; an index is of training examples")
        if self.update and (self.curvature_path is not None or self.overwrite):
            raise ValueError("--update keeps the index and its curvature; leave --curvature_path and --overwrite out")
        if self.normalize != "none" or self.removal != "first_order":
            raise ValueError("an index holds plain influence, first order; leave --normalize and --removal out")
        if not (self.update or self.curvature_path is not None or self.curvature_kind.has_embedding):
            able = [name for name, kind in CURVATURES.items() if kind.has_embedding]
            raise ValueError(f"--curvature {self.curvature} gives no embedding of r numbers for an index; use {', '.join(able)}")

    def _check_groups(self) -> None:
        """Whether what the tables of groups need is given."""
        from beam_influence.influence_ops.scoring.outputs.table import OUTPUTS

        of_groups = [name for name in self.output_tables if OUTPUTS[name].needs_groups]
        if of_groups and not self.group_feature:
            raise ValueError(f"--outputs {of_groups[0]} needs --group_feature, the feature that names an example's group")
        if self.second_order_groups and (not of_groups or self.normalize != "none" or self.removal != "first_order"):
            raise ValueError("--second_order_groups goes with --outputs group_influence, --normalize none and --removal first_order")
        if self.removal == "newton" and {"group_self_influence", "group_vectors"} & set(of_groups):
            raise ValueError("--removal newton is of single examples; for groups' vectors and self-influence use --removal first_order")

    def _check_passes(self) -> None:
        """Whether there are test points for passes that solve them, and a curvature for the command `fit`."""
        from beam_influence.influence_ops.curvature import CURVATURES, solving_passes
        from beam_influence.influence_ops.scoring.outputs.table import tables_of_test_points

        if not self.passes_fit and (self.passes or self.solver_passes):
            others = [name for name in self.output_tables if name not in tables_of_test_points()]
            solves = solving_passes(self.curvature_kind, self.passes) is not None
            if not solves or others or self.normalize != "none" or self.second_order_groups:
                able = [name for name, kind in CURVATURES.items() if solving_passes(kind, None) is not None]
                raise ValueError(
                    f"passes over the data solve test points, with --curvature {' or '.join(able)}: --outputs "
                    f"{', '.join(tables_of_test_points())}, not normalised, to first order; for the rest use --passes 0, which gives "
                    "EK-FAC's answer or the sample's"
                )
        if self.only_curvature and self.passes and not self.passes_fit:
            raise ValueError(f"--passes of {self.curvature} solves test points, and fit has none; leave it out")
        if self.only_curvature and (self.curvature_path or self.influence_vectors_path or self.curvature_kind.passes == 0):
            raise ValueError(
                "there is no curvature to fit: leave --curvature_path and --influence_vectors_path out, and name a --curvature"
            )

    def _check_saved(self) -> None:
        """Whether options that decide how a curvature is fitted are given where a saved one is used."""
        from beam_influence.influence_ops.curvature import solving_passes

        saved = next((name for name in ("curvature_path", "influence_vectors_path", "index", "update") if getattr(self, name)), None)
        if saved is None:
            return
        fitting = [field for field in dataclasses.fields(self) if field.metadata["fits"]]
        given = {field.name: value for field in fitting if (value := getattr(self, field.name)) != field.default}
        own = own_fields(self.curvature_kind.Settings)
        if not any(own[name].metadata.get("fits", True) for name in self.own_settings):
            given.pop("curvature_settings", None)
        if not self.solver_passes:
            given |= {name: value for name in ("passes", "tolerance") if (value := getattr(self, name)) is not None}
        if solving_passes(self.curvature_kind, self.passes) is not None:
            given.pop("passes", None)  # 0: the saved curvature's own answer
        if given:
            name, value = next(iter(given.items()))
            raise ValueError(
                f"--{name} {value} decides how a curvature is fitted, and --{saved} uses one that was fitted; leave one of them out"
            )

    def _check_memory(self) -> None:
        """Whether what decides how solved test points, and sums over groups, are held has some to decide on."""
        from beam_influence.influence_ops.scoring.outputs.table import OUTPUTS, tables_of_test_points

        options = ("query_rank",) if any(OUTPUTS[name].needs_groups for name in self.output_tables) else ("query_rank", "max_worker_memory")
        said = next((name for name in options if getattr(self, name) is not None), None)
        if self.max_worker_memory is not None:
            try:
                parse_bytes(self.max_worker_memory)
            except ValueError as error:
                raise ValueError(f"--max_worker_memory {error}") from error
        if said is None:
            return
        if "solved" not in self.query_arrays or not set(self.output_tables) & set(tables_of_test_points()):
            raise ValueError(f"--{said} {getattr(self, said)} is of solved test points, and there are none; leave it out")
        if self.query_rank is not None and (self.solver_passes or self.removal == "newton"):
            raise ValueError(
                f"--query_rank {self.query_rank} is of a test point that a curvature solves in one step, to first order; with --passes or "
                "--removal newton leave it out"
            )

    def _check_idle(self) -> None:
        """Whether options are given that decide nothing beside the others."""
        from beam_influence.influence_ops.scoring.outputs.table import OUTPUTS

        is_ranked = any(OUTPUTS[name].is_ranked for name in self.output_tables)
        used = {
            "index_dtype": (self.only_index, "the command index"),
            "top_k": (is_ranked, "--outputs top_k and self_influence_top_k"),
            "order": (is_ranked, "--outputs top_k and self_influence_top_k"),
            "normalize": (bool(self.output_tables), "scores, which this command does not make"),
            "score_tolerance": (self.test is not None and self.index is None, "scores of test points that are computed from gradients"),
            "seed": ("seed" in self.settings or self.n_samples is not None, "curvatures that draw, and of --n_samples"),
            "last_layer": (self.start_layer is not None, "--start_layer, the first watched layer"),
            "weights": (self.start_layer is None or self.weights is None, "a run without --start_layer, which chooses the weights"),
        }
        for name, (is_used, of) in used.items():
            default = type(self).__dataclass_fields__[name].default
            if not is_used and getattr(self, name) != default:
                raise ValueError(f"--{name} {getattr(self, name)} is of {of}; leave it out")

    @property
    def solver_passes(self) -> int:
        """How many passes solve the test points, at most; of several solves, one after the other, each."""
        from beam_influence.influence_ops.curvature import solving_passes

        return 0 if self.only_curvature else solving_passes(self.curvature_kind, self.passes) or 0

    @property
    def query_arrays(self) -> tuple[QueryArray, ...]:
        """What later steps look at of each embedded test point: saved vectors and an index are multiplied with its gradient, or with
        what stands for it; solving it over all data, and group influence to second order, begin with its gradient too."""
        if self.index is not None or self.influence_vectors_path is not None:
            return ("gradients",)
        if self.per_token:
            return ("gradients", "solved", "placed") if self.second_order_groups else ("solved", "placed")
        if self.uncertainty and not self.solver_passes:
            return ("solved", "errors")
        return ("gradients", "solved") if self.solver_passes or self.second_order_groups else ("solved",)

    @property
    def work_folder(self) -> str:
        """Where temporary files go: a folder of this run's own, since it is emptied before and after."""
        if self.work_dir is None:
            return f"{self.output.rstrip('/')}/.work"
        return f"{self.work_dir.rstrip('/')}/beam-influence-{hashlib.sha256(self.output.encode()).hexdigest()[:16]}"

    def make_curvature(self) -> Curvature:
        """The curvature, not fitted yet."""
        from beam_influence.influence_ops.curvature import curvature_by_name

        settings = self.settings
        if self.only_index and self.rank is None and "rank" in settings:
            settings["rank"] = self.curvature_kind.index_rank
        try:
            return curvature_by_name(self.curvature, self.n_samples, self.seed, settings)
        except ValueError as error:
            raise ValueError(f"--{error}") from error

    def score_options(self) -> ScoreOptions:
        """The scores' options."""
        from beam_influence.influence_ops.scoring.scores import ScoreOptions

        try:
            return ScoreOptions(typing.cast(Any, self.normalize), typing.cast(Any, self.removal), tolerance=self.score_tolerance)
        except ValueError as error:
            raise ValueError(f"--{error}") from error

    def output_options(self, index_error: float | None = None) -> OutputOptions:
        """What outputs are asked for; `index_error`: of the index that is read."""
        from beam_influence.influence_ops.scoring.outputs.base import OutputOptions

        order: Order = "descending" if self.order == "descending" else "ascending"
        of_candidates = self.candidates is not None
        by_embedding = of_candidates and self.index is not None
        what = (self.output_tables, self.score_options(), self.top_k, order, self.second_order_groups)
        draws = self.curvature_kind.error_draws if self.uncertainty else 0
        return OutputOptions(*what, of_candidates, by_embedding, index_error, self.per_token, draws)

    def as_json(self) -> dict[str, Any]:
        """All options, for the manifest; without passwords and tokens in addresses."""
        from beam_influence.influence_ops.redact import without_secrets

        return {name: without_secrets(value) if isinstance(value, str) else value for name, value in dataclasses.asdict(self).items()}


def own_options(kind: type[Curvature]) -> dict[str, dataclasses.Field[Any]]:
    """The options that a curvature of the user's own adds to the command line, by name.

    Raises:
      ValueError: one has the name of another option.
    """
    found = own_fields(kind.Settings)
    taken = [field.name for field in dataclasses.fields(InfluenceConfig) if field.name in found]
    if taken:
        raise ValueError(f"the setting {taken[0]} of {kind.__name__} has the name of another option; call it otherwise")
    return found
