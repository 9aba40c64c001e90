"""What `beam-influence --help` says of each command."""

from __future__ import annotations

from typing import NamedTuple

GROUP_HELP = {
    "data": "what is read",
    "model": "what is explained",
    "method": "how influence is computed",
    "settings": "what your own curvature is given",
    "training": "the training that is repeated, and how its derivative is measured",
    "results": "what is written",
    "execution": "how it runs (none of these changes the result)",
    "evaluate": "what is evaluated, and how",
    "report": "what is shown",
    "clean": "what is taken out, and where the rest goes",
    "export": "what is written, and for what",
    "ensemble": "what is made of the runs",
}

WAY = {
    "The way": ("demo", "plan", "run", "report"),
    "Once for many runs of one training set": ("fit", "index", "query"),
    "Through the whole training, where it can be repeated": ("unrolled",),
    "With finished results": ("inspect", "evaluate", "ensemble", "clean", "export"),
}
"""The commands in the order in which a newcomer meets them."""

TOP_DESCRIPTION = """\
Which training examples made the model say this? Influence functions for TensorFlow and Keras models, on Apache Beam:
files and a trained model in, Parquet tables out."""

TOP_EPILOG = """\
First steps:
  beam-influence demo digits
  beam-influence run --model model.keras --train 'train-*.tfrecord.gz' --test 'test-*.tfrecord.gz' --output influence
  beam-influence report influence --output report.html

COMMAND --help shows what most need, COMMAND --help-all every option; --print-completion bash (or zsh, tcsh) a shell's completion.
Exit status: 0 done; 1 the run failed; 2 wrong options or input; 130 interrupted (the same command goes on where it was)."""

_RUN_DESCRIPTION = """\
Which training examples made the model say this? Computes the influence of every training example on the
model's loss at every test point, and writes the strongest ones (and more, see --outputs) as Parquet.

A positive influence means that removing the training example would raise the test loss: the example helps.
A negative one means that it harms. The column loss_change is that predicted change itself."""

_RUN_EPILOG = """\
Any other option goes to Beam, for example --parallelism=8 with --runner flink.

Examples:
  beam-influence run --model model.keras --train 'train-*.tfrecord.gz' --test 'test-*.tfrecord.gz' \\
      --output influence --top_k 10 --outputs top_k,self_influence
  beam-influence run --config influence/manifest.json --set output=again --set top_k=20"""

_FIT_DESCRIPTION = """\
Fits the curvature of the training set and saves it, for any number of later runs:
`beam-influence run --curvature_path OUTPUT/curvature`."""

_FIT_EPILOG = """\
Examples:
  beam-influence fit --model model.keras --train 'train-*.tfrecord.gz' --curvature gauss_newton --output fitted
  beam-influence run --model model.keras --train 'train-*.tfrecord.gz' --test 'test-*.tfrecord.gz' \\
      --curvature_path fitted/curvature --output influence"""

_INDEX_DESCRIPTION = """\
Embeds the training set once into r numbers for each example, whose inner products with those of a test point are
influence: `beam-influence query` then answers new test points without the training set and its gradients.
With --update, only files that the index lacks are embedded."""

_INDEX_EPILOG = """\
Examples:
  beam-influence index --model model.keras --train 'train-*.tfrecord.gz' --curvature arnoldi --rank 200 --output indexed
  beam-influence index --model model.keras --train 'more-*.tfrecord.gz' --output indexed --update
  beam-influence query --model model.keras --index indexed --test 'test-*.tfrecord.gz' --output influence"""

_QUERY_EPILOG = """\
Examples:
  beam-influence index --model model.keras --train 'train-*.tfrecord.gz' --curvature arnoldi --rank 200 --output indexed
  beam-influence query --model model.keras --index indexed --test 'test-*.tfrecord.gz' --output influence"""

_QUERY_DESCRIPTION = """\
The influence of the examples in an index on test points, as the command run has it, from the index alone."""

_PLAN_DESCRIPTION = """\
What will a run take? Checks the options of a run as the command run does, runs a sample of its files on this machine (less
than a minute for most models), and says: passes, FLOPs, bytes read and shuffled, seconds, memory, worker-hours.
Nothing is written to OUTPUT. For the command fit give --outputs curvature, for index --outputs index."""

_PLAN_EPILOG = """\
Examples:
  beam-influence plan --model model.keras --train 'train-*.tfrecord.gz' --test 'test-*.tfrecord.gz' --output influence \\
      --weights all --curvature ekfac --plan_workers 20
  beam-influence plan --model model.keras --train 'train-*.tfrecord.gz' --outputs curvature --output fitted --json"""

_EVALUATE_DESCRIPTION = """\
How good are the scores of finished runs? Measures of the field, several runs side by side, with standard errors.
Retraining runs on Beam (any other option goes to it); what each measure means is in docs/evaluation.md."""

_EVALUATE_EPILOG = """\
Examples:
  beam-influence evaluate lds --scores influence --train_fn my_training:train --output evaluation
  beam-influence evaluate mislabelled --scores influence --mislabelled wrong_ids.txt --output evaluation"""

_ENSEMBLE_DESCRIPTION = """\
The mean of several finished runs' scores, each with its own model and curvature, and how sure it is: the tables of the runs, which are
over the same examples and test points, with a column standard_error; top_k of the mean, with stable, whether a row's 90 % interval
ends before the first training example that is not in the table. Needs --outputs scores of each run for top_k."""

_ENSEMBLE_EPILOG = """\
Any other option goes to Beam, for example --parallelism=8 with --runner flink.

Examples:
  beam-influence ensemble influence-0 influence-1 influence-2 --output ensemble
  beam-influence report ensemble --output report.html"""

_REPORT_DESCRIPTION = """\
A finished run as one page: its test points as themselves, with their predictions and the training examples that helped and
harmed most; suspicious labels; groups; the run, and how far to trust it. The file asks nothing of the network."""

_REPORT_EPILOG = """\
Any other option goes to Beam's file systems, such as --s3_endpoint_url.

Examples:
  beam-influence report influence --output report.html
  beam-influence report influence --test_points 50 --top_k 10 --evaluation evaluation --output report.html"""

_INSPECT_DESCRIPTION = """\
What is in this folder? Of the results of a run, a saved curvature, an index, a cleaned training set or an evaluation: what it
is, its tables with their columns, rows and first rows, what sign and unit mean, how it was made, and the command that makes it
again."""

_INSPECT_EPILOG = """\
Examples:
  beam-influence inspect influence
  beam-influence inspect influence/manifest.json --rows 0 --json"""

_CLEAN_DESCRIPTION = """\
The training set of a finished run without some of its examples, file by file, in the same format and compression: without those
of the largest self-influence (--share), or without those in a list (--ids). With --weight they stay, with less weight.
What was done is in OUTPUT/cleaning/facts.json, written last."""

_CLEAN_EPILOG = """\
Any other option goes to Beam, for example --parallelism=8 with --runner flink.

Examples:
  beam-influence clean influence --share 0.05 --output cleaned
  beam-influence clean influence --ids drop.txt --output cleaned"""

_EXPORT_DESCRIPTION = """\
Results for other programs: a DuckDB file with views joined to the examples; one Parquet table of scores and examples for
pandas, or for Renumics Spotlight; cleanlab's columns; a list of ids to drop, which the command clean and tf.data take."""

_EXPORT_EPILOG = """\
Any other option goes to Beam's file systems, such as --s3_endpoint_url.

Examples:
  beam-influence export influence --to duckdb --output influence.duckdb
  beam-influence export influence --to ids --share 0.05 --output drop.txt"""


_UNROLLED_DESCRIPTION = """\
Which training examples made the training end in this? Repeats the training step by step, from the model before it, and goes
backward through all of it for each test point: the exact derivative of its loss by the weight of every example (MAGIC). For
trainings that can be repeated: a fixed order of the batches, an optimizer of Keras's. The cost is some trainings for each block
of test points; whether the derivative predicts what a change of the training set does is measured, and said (smoothness).

The tables, their sign and unit are those of the command run; loss_change is the derivative, when an example's weight goes to 0."""

_UNROLLED_EPILOG = """\
Any other option goes to Beam, for example --parallelism=8 with --runner flink.

Examples:
  beam-influence unrolled --model before.keras --train 'train-*.tfrecord.gz' --test 'test-*.tfrecord.gz' \\
      --epochs 10 --batch_size 64 --trained model.keras --output unrolled
  beam-influence report unrolled --output unrolled.html"""

_DEMO_DESCRIPTION = """\
Real data that come with this package or with scikit-learn, of which 5 % of the labels are made wrong: writes files, trains a
small Keras model, runs the commands run and report on them, and says how many of the wrong labels were found."""

_DEMO_EPILOG = """\
Examples:
  beam-influence demo digits
  beam-influence demo text --output out/text"""


class CommandHelp(NamedTuple):
    """A command: in one line, in some, its examples; what it needs, and the options that most runs of it need."""

    summary: str
    description: str
    epilog: str
    needed: str = ""
    common: tuple[str, ...] = ()


_MODEL = ("loss", "label_feature", "input_features", "weights")
_RUN = CommandHelp(
    "influence of training examples on test points",
    _RUN_DESCRIPTION,
    _RUN_EPILOG,
    "--model MODEL --train FILES --test FILES --output FOLDER",
    ("model", "train", "test", "output", "outputs", "top_k", *_MODEL, "curvature", "runner", "config", "set"),
)

COMMAND_HELP = {
    "demo": CommandHelp("real data, a model, a run and its report, in a minute", _DEMO_DESCRIPTION, _DEMO_EPILOG),
    "run": _RUN,
    "index": CommandHelp(
        "r numbers for each training example, for any number of later queries",
        _INDEX_DESCRIPTION,
        _INDEX_EPILOG,
        "--model MODEL --train FILES --output FOLDER",
        ("model", "train", "output", "update", *_MODEL, "curvature", "rank", "runner", "config", "set"),
    ),
    "query": CommandHelp(
        "influence of indexed training examples on test points",
        _QUERY_DESCRIPTION,
        _QUERY_EPILOG,
        "--model MODEL --index FOLDER --test FILES --output FOLDER",
        ("model", "index", "test", "output", "outputs", "top_k", *_MODEL, "runner", "config", "set"),
    ),
    "fit": CommandHelp(
        "the curvature of a training set, saved for later runs",
        _FIT_DESCRIPTION,
        _FIT_EPILOG,
        "--model MODEL --train FILES --output FOLDER",
        ("model", "train", "output", *_MODEL, "curvature", "damping", "n_samples", "runner", "config", "set"),
    ),
    "unrolled": CommandHelp(
        "influence as the derivative through the whole training, step by step",
        _UNROLLED_DESCRIPTION,
        _UNROLLED_EPILOG,
        "--model MODEL --train FILES --test FILES --output FOLDER --epochs INT --batch_size INT",
        (
            *("model", "train", "test", "output", "outputs", "top_k", "epochs", "batch_size", "shuffle_seed", "batches", "trained"),
            *("smoothness", "loss", "label_feature", "input_features", "runner"),
        ),
    ),
    "plan": CommandHelp(
        "what a run will take, before it",
        _PLAN_DESCRIPTION,
        _PLAN_EPILOG,
        "--model MODEL --train FILES --test FILES --output FOLDER",
        (*_RUN.common, "plan_workers", "json"),
    ),
    "evaluate": CommandHelp("how good scores are", _EVALUATE_DESCRIPTION, _EVALUATE_EPILOG),
    "ensemble": CommandHelp(
        "the mean of several runs' scores, and how sure it is",
        _ENSEMBLE_DESCRIPTION,
        _ENSEMBLE_EPILOG,
        "RESULTS RESULTS ... --output FOLDER",
        ("output", "top_k", "runner"),
    ),
    "report": CommandHelp("a finished run as a page that a person reads", _REPORT_DESCRIPTION, _REPORT_EPILOG),
    "inspect": CommandHelp("what a folder of this program is, and how it was made", _INSPECT_DESCRIPTION, _INSPECT_EPILOG),
    "clean": CommandHelp(
        "the training set without its suspicious examples",
        _CLEAN_DESCRIPTION,
        _CLEAN_EPILOG,
        "RESULTS --output FOLDER",
        ("output", "share", "ids", "weight", "source", "others", "runner"),
    ),
    "export": CommandHelp("results for DuckDB, pandas, cleanlab, Spotlight; ids to drop", _EXPORT_DESCRIPTION, _EXPORT_EPILOG),
}
