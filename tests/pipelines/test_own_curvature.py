"""A curvature of the user's own, with settings of its own and several passes: on the command line and in memory the same."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np
import pytest

from beam_influence import Curvature, CurvatureSettings, FinishOptions, InfluenceConfig, Preconditioner, setting
from beam_influence.influence_ops.curvature import Statistic, curvature_by_name, fit, load_preconditioner
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients import Gradients
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.pipelines.cli import main
from tests.pipelines.digits_job import FN_API, DigitsJob, influence_model

HERE = "tests.pipelines.test_own_curvature"

OWN = f"{HERE}:CutDiagonal"
NEEDED = ["--model=m", "--train=a", "--output=o", "--outputs=self_influence"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutSettings(CurvatureSettings):
    """Of `CutDiagonal`."""

    cut: float = setting(3.0, "Gradients count up to this many mean deviations.")
    centred: bool = setting(True, "Whether deviations are from the mean.")

    def __post_init__(self) -> None:
        if self.cut <= 0:
            raise ValueError(f"cut={self.cut} must be above 0")


class DiagonalPreconditioner(Preconditioner):
    """diag(1/(s + λ)); array: `squares` s [P]."""

    kind = "tests.diagonal"

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        return np.asarray(gradients, dtype=np.float64) / (self.arrays["squares"] + self.meta["damping"])

    def embed(self, gradients: np.ndarray | Gradients) -> np.ndarray:
        return np.asarray(gradients, dtype=np.float64) / np.sqrt(self.arrays["squares"] + self.meta["damping"])


class CutDiagonal(Curvature):
    """The mean square of each weight's gradient, cut off at some deviations: the mean, the deviations and the squares are a pass each."""

    name = "cut_diagonal"
    passes = 3
    Settings = CutSettings
    operators = (DiagonalPreconditioner,)
    has_embedding = True
    settings: CutSettings
    known: Mapping[str, np.ndarray] = {}

    def create(self, model: ExplainedModel) -> Statistic:
        return {"sum": np.zeros(model.size), "count": np.zeros(1)}

    def add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> Statistic:
        gradients = np.asarray(model.losses_and_gradients(batch)[1], dtype=np.float64)
        if self.passes < 3:
            gradients = np.abs(gradients - self.known["mean"] * self.settings.centred)
        if self.passes < 2:
            gradients = np.square(np.minimum(gradients, self.settings.cut * self.known["deviation"]))
        statistic["sum"] += gradients.sum(axis=0)
        statistic["count"] += len(batch)
        return statistic

    def advance(self, model: ExplainedModel, statistic: Statistic) -> dict[str, np.ndarray]:
        found = {"mean" if self.passes == 3 else "deviation": statistic["sum"] / statistic["count"]}
        return {**self.known, **found, "left": np.array([self.passes - 1])}

    def resume(self, arrays: Mapping[str, np.ndarray]) -> Curvature:
        later = copy.copy(self)
        later.known, later.passes = {name: np.asarray(array) for name, array in arrays.items()}, int(arrays["left"][0])
        return later

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        facts = {"examples": int(statistic["count"][0]), "size": model.size, "fingerprint": model.fingerprint()}
        squares = statistic["sum"] / statistic["count"]
        return DiagonalPreconditioner({"squares": squares}, {"curvature": self.name, "damping": options.damping, **facts})


def test_the_command_line_and_memory_fit_the_same(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    files = ["--model", str(job.model), "--train", job.shards("train", 3).pattern, "--output", str(tmp_path / "out")]
    assert main(["fit", *files, "--curvature", OWN, "--cut", "1.5", "--no-centred", "--damping=0.1", *FN_API]) == 0
    fitted = load_preconditioner(str(tmp_path / "out" / "curvature"))
    split = job.splits["train"]
    ids = np.array(job.shards("train", 3).ids(), dtype=object)
    batches = [
        ExampleBatch(ids[rows], split.images[rows], split.labels[rows]) for rows in np.array_split(np.arange(len(split.images)), 4)
    ]
    model = influence_model(str(job.model))
    wanted = fit(model, curvature_by_name(OWN, settings={"cut": 1.5, "centred": False}), lambda: batches, FinishOptions(0.1))
    np.testing.assert_allclose(fitted.arrays["squares"], wanted.arrays["squares"], rtol=1e-9)  # sums in another order
    plain = fit(model, curvature_by_name(OWN), lambda: batches, FinishOptions(0.1))
    assert np.abs(plain.arrays["squares"] - wanted.arrays["squares"]).max() > 1e-3  # the settings matter
    config = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]
    assert config["curvature_settings"] == "cut=1.5,centred=False"


def test_settings_are_named_in_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--curvature", OWN, "--help"])
    assert "Gradients count up to this many mean deviations. (default: 3.0)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cutt=2"], "--cutt is not an option, of this command nor of Beam; did you mean --cut?"),
        (["--cut=0"], "--cut=0.0 must be above 0"),
        (["--curvature_settings=cot=2"], f"the curvature {OWN} has no setting cot; did you mean cut?"),
        (["--curvature_settings=cut=much"], "--cut 'much' must be of type float"),
        (["--curvature_settings=cut"], "--curvature_settings 'cut': write name=value,name=value, each name once"),
        (["--curvature_path=c", "--cut=2"], "--curvature_settings cut=2.0 decides how a curvature is fitted"),
        (["--removal=newton"], "--removal newton needs the whole matrix"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *NEEDED, "--curvature", OWN, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_setting_of_another_curvature_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *NEEDED, "--cut=2"]) == 2
    assert "--cut is not an option, of this command nor of Beam" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the curvature exact has no setting cut; there are none"):
        curvature_by_name("exact", settings={"cut": 2.0})


class NamedLikeAnother(CutDiagonal):
    """Its setting would be taken for the option of every run."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Settings(CutSettings):
        batch_size: int = 3


def test_a_setting_can_not_have_the_name_of_an_option() -> None:
    with pytest.raises(ValueError, match="the setting batch_size of NamedLikeAnother has the name of another option"):
        InfluenceConfig(model="m", train="a", output="o", outputs="curvature", curvature=f"{HERE}:NamedLikeAnother")
