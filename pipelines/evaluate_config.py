"""The options of `beam-influence evaluate`, each with its help and the measures that it belongs to."""

from __future__ import annotations

import dataclasses
from typing import Any

MEASURES = {
    "lds": (
        "the linear datamodelling score: do sums of scores rank models trained on parts of the data?",
        "Trains on random parts of the training set (or reads such retrainings), and correlates, for each test point, the negative "
        "loss with the sum of the scores over the part (Spearman). 1 is perfect, 0 is chance. Beside it what "
        "costs no curvature: likeness in what the last layer sees, the plain loss, and random numbers.",
    ),
    "coverage": (
        "do an ensemble's 90-percent intervals hold what retraining shows, and how wide must they be?",
        "Trains on random parts of the training set (or reads such retrainings); --scores names the members of an ensemble. Every second "
        "test point, from the first, learns how many standard errors wide an interval must be to hold 90 percent of the losses (conformal "
        "prediction), the others report; ensemble --interval_factor takes it. Beside it Student's t, which is about other members alone.",
    ),
    "leave_one_out": (
        "does loss_change predict the removal of one example and retraining?",
        "Trains without single examples (or reads such retrainings), and compares the change of each test loss with I / n.\n"
        "On networks that are not convex, the change by one example is mostly the noise of training. Beside it the baselines of lds.",
    ),
    "mislabelled": (
        "does self-influence find wrong labels, beside the plain loss?",
        "Ranks the training examples by self-influence, by their plain loss, by how many of their neighbours have another class, and at "
        "random, and tells how well each ranking finds those that are known to be mislabelled.",
    ),
    "brittleness": (
        "how far does a test loss rise when its most helpful examples are taken out and the model retrained?",
        "For some test points, takes the k most helpful training examples out and retrains; beside it as many by the baselines "
        "of class_detection.",
    ),
    "tail_patch": (
        "does one more training step on the most helpful examples lower the test loss? No retraining",
        "For some test points, takes one gradient step on the k most helpful training examples; beside it as many by the "
        "baselines of class_detection.",
    ),
    "class_detection": (
        "are the most helpful examples of the test point's own class, or subclass? No retraining",
        "The share of the k most helpful training examples that have the test point's label, or its value of --class_feature, such as "
        "a subclass that the model was not told; and the reciprocal rank of the first. Beside it the nearest neighbours, in the inputs and "
        "in what the last layer sees, the examples of the largest loss, and random ones.",
    ),
    "retrieval": (
        "are training examples found that are known to matter? No retraining",
        "Precision and recall among the k most helpful training examples, and the mean reciprocal rank, of those that --relevant names for "
        "each test point, such as the passages that tell a fact. Beside it the baselines of class_detection.",
    ),
    "shortcut": (
        "are the training examples found that taught the model a shortcut? No retraining",
        "The same for test points that have a shortcut, such as a watermark, on which the model relies: --relevant names the training "
        "examples that have it.",
    ),
    "cardinality": (
        "how many different training examples explain all test points? No retraining",
        "The number of different examples among the k most helpful of all test points, and its share of the rows: small where the same "
        "few, such as outliers, come up for everything. Beside it the baselines of class_detection.",
    ),
    "choose": (
        "which curvature and damping predict retraining best? Within --budget seconds of retraining",
        "Trains on random parts of the training set for about --budget seconds, and judges identity, kfac, ekfac and (up to 4,096 weights) "
        "gauss_newton and exact, each with its own damping and eleven around it, or (of more weights) gauss_newton_cg with four, by the "
        "LDS: every second test point, from the first, chooses, the others report. Prints the "
        "command that runs the choice.",
    ),
    "randomised": (
        "do the scores depend on what the model has learned? No retraining",
        "How many of the first run's k most helpful examples the others name, too: runs of the same network with random weights. Scores "
        "that stay the same are about the data or the architecture, not about the model. Beside it the baselines of class_detection.",
    ),
}
ALL = tuple(MEASURES)
_RETRAINED = ("lds", "leave_one_out")
_READ_ALONE = ("class_detection", "retrieval", "shortcut", "cardinality", "randomised")
_ON_TOP_K = ("brittleness", "tail_patch", *_READ_ALONE)
_RELEVANT = ("retrieval", "shortcut")
_ON_PARTS = (*_RETRAINED, "coverage", "choose")
RETRAINING = (*_ON_PARTS, "brittleness")


def _option(default: Any, help: str, measures: tuple[str, ...] = ALL) -> Any:
    metadata = {"help": help, "measures": measures, "choices": None, "group": "evaluate"}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What is evaluated, and how.

    Raises:
      ValueError: an option is wrong; the message names it, its value and what to write instead.
    """

    measure: str
    scores: str = _option(
        dataclasses.MISSING,
        "The folder of a finished run (its --output); several, separated by commas, are compared side by side (of coverage, they are one "
        "ensemble's members). lds, coverage and leave_one_out read its table scores, mislabelled self_influence, the other measures top_k. "
        "The model and the data are those of the first; for randomised the others are of the same network with random weights.",
    )
    output: str = _option(
        dataclasses.MISSING,
        "Folder for the result: MEASURE.json, MEASURE.parquet, and finished retrainings, which are not done again.",
    )
    ground_truth: str | None = _option(
        None, "Saved retrainings, an .npz file (docs/evaluation.md has its arrays), instead of --train_fn.", _ON_PARTS
    )
    train_fn: str | None = _option(
        None,
        "Your function module:function(examples, seed): trains on a tf.data.Dataset of (inputs, labels) and returns the built Keras "
        "model (docs/evaluation.md).",
        RETRAINING,
    )
    model: str | None = _option(None, "The run's --model again, where that is your function module:function: a file names no code.")
    loss: str | None = _option(None, "The run's --loss again, where that is your own, module:function.")
    preprocess: str | None = _option(None, "The run's --preprocess again, where it had one.")
    curvature: str | None = _option(
        None, "With --damping_sweep: the run's --curvature again, where that is your own, module:Class.", _RETRAINED
    )
    retrainings: int = _option(
        50, "How many parts of the training set (lds, coverage; choose: at most), or single removals (leave_one_out).", _ON_PARTS
    )
    fraction: float = _option(0.5, "How much of the training set each part has.", ("lds", "coverage", "choose"))
    budget: float | None = _option(
        None, "Seconds of retraining, about: as many parts as they allow, at least 4.", ("choose",)
    )
    repeats: int = _option(1, "Train so often, each time with another seed, and take the mean loss.", RETRAINING)
    damping_sweep: str | None = _option(
        None,
        "Evaluate the run's saved curvature under many dampings instead of its scores: 'auto' (its own × 0.01 to 100), or values "
        "separated by commas. Every second test point, from the first, chooses the best; the others report. The scores are not needed.",
        _RETRAINED,
    )
    mislabelled: str | None = _option(
        None,
        "The ids of the mislabelled training examples: a text file with one a line, or Parquet or CSV with a column train_id.",
        ("mislabelled",),
    )
    shares: str = _option(
        "1,5,10,20,30", "Shares of the training set, in %, in which mislabelled examples are looked for.", ("mislabelled",)
    )
    class_feature: str | None = _option(
        None, "The feature that names an example's class, in the files of both splits. Default: the label.", ("class_detection",)
    )
    relevant: str | None = _option(
        None,
        "Which training examples are to be found: Parquet or CSV with columns test_id and train_id, a row for each pair; or train_id "
        "alone, or a text file with one a line: the same for all test points.",
        _RELEVANT,
    )
    test_points: int | None = _option(
        None,
        "How many test points, spread evenly over the test set. Default: 10, and 100 of measures without retraining and steps.",
        _ON_TOP_K,
    )
    k: str = _option("10", "How many examples to take out, or to step on; several numbers are separated by commas.", _ON_TOP_K)
    learning_rate: float = _option(0.01, "Of the gradient step.", ("tail_patch",))
    seed: int = _option(0, "Of everything random: parts, removals, training (seed, seed + 1, …), the bootstrap.")
    overwrite: bool = _option(False, "Replace the result that OUTPUT holds; finished retrainings are kept.")

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"{self.measure!r} is no measure; use one of {', '.join(MEASURES)}")
        if not self.runs:
            raise ValueError(f"--scores {self.scores!r} must name the folder of a finished run")
        if not self.output:
            raise ValueError("--output must name a folder")
        if len(set(self.runs)) < len(self.runs):
            raise ValueError(f"--scores {self.scores!r} names a folder twice")
        if self.measure in _ON_PARTS and (self.ground_truth is None) == (self.train_fn is None):
            given = "both were" if self.ground_truth else "neither was"
            raise ValueError(f"give either --ground_truth (saved retrainings) or --train_fn (to retrain now); {given} given")
        if self.measure == "brittleness" and self.train_fn is None:
            raise ValueError("brittleness retrains: name your function as --train_fn module:function")
        if self.train_fn is not None and ":" not in self.train_fn:
            raise ValueError(f"--train_fn {self.train_fn!r} is not an import path; write it as 'package.module:function'")
        if self.curvature is not None and self.damping_sweep is None:
            raise ValueError(f"--curvature {self.curvature} goes with --damping_sweep; leave it out")
        if self.measure == "mislabelled" and self.mislabelled is None:
            raise ValueError("--mislabelled is needed: a file with the ids of the training examples whose labels are wrong")
        if self.measure == "choose":
            self._check_choice()
        if self.measure == "coverage" and len(self.runs) < 2:
            raise ValueError(f"--scores {self.scores!r} must name at least two runs, the members of an ensemble: one has no standard error")
        if self.measure in _ON_PARTS and self.retrainings < 3:
            raise ValueError(f"--retrainings {self.retrainings} must be at least 3, for a correlation over them")
        if not 0 < self.fraction < 1:
            raise ValueError(f"--fraction {self.fraction} must be above 0 and below 1")
        if self.measure in _RELEVANT and self.relevant is None:
            raise ValueError("--relevant is needed: a file with the ids of the training examples that are to be found")
        if self.measure == "randomised" and len(self.runs) < 2:
            raise ValueError(f"--scores {self.scores!r} must name two runs: of the model, then of the same network with random weights")
        for name in ("repeats", "test_points"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value} must be at least 1")
        if any(not 0 < damping < float("inf") for damping in self.damping_list or ()):
            raise ValueError(f"--damping_sweep {self.damping_sweep!r} must be 'auto', or numbers above 0, separated by commas")
        if not self.learning_rate > 0:
            raise ValueError(f"--learning_rate {self.learning_rate} must be above 0")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must be at least 0")
        if any(not 0 < share <= 1 for share in self.share_list):
            raise ValueError(f"--shares {self.shares!r} must be percentages above 0 and up to 100, separated by commas")
        if any(k < 1 for k in self.k_list):
            raise ValueError(f"--k {self.k!r} must be numbers of at least 1, separated by commas")

    def _check_choice(self) -> None:
        if len(self.runs) > 1:
            raise ValueError(f"--scores {self.scores!r}: choose is of one run, whose model and data it takes; name one")
        if (self.budget is None) == (self.train_fn is not None):
            raise ValueError("--budget is needed beside --train_fn: the seconds of retraining; and with --ground_truth there is none")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"--budget {self.budget:g} must be above 0")

    @property
    def code(self) -> dict[str, str | None]:
        """What may be named as code, by option."""
        return {"model": self.model, "loss": self.loss, "preprocess": self.preprocess, "curvature": self.curvature}

    @property
    def runs(self) -> tuple[str, ...]:
        """The folders in `scores`."""
        return tuple(folder.strip().rstrip("/") for folder in self.scores.split(",") if folder.strip())

    @property
    def chosen_test_points(self) -> int:
        """How many test points are looked at, at most."""
        return self.test_points or (100 if self.measure in _READ_ALONE else 10)

    @property
    def damping_list(self) -> tuple[float, ...] | None:
        """The dampings in `damping_sweep`; None: a grid around the run's own."""
        if self.damping_sweep is None or self.damping_sweep.strip() == "auto":
            return None
        return tuple(_numbers("damping_sweep", self.damping_sweep, float))

    @property
    def share_list(self) -> tuple[float, ...]:
        """The shares, as parts of 1."""
        return tuple(value / 100 for value in _numbers("shares", self.shares, float))

    @property
    def k_list(self) -> tuple[int, ...]:
        """The numbers in `k`."""
        return tuple(_numbers("k", self.k, int))


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise ValueError(f"--{option} {text!r} must be numbers, separated by commas")
    return found
