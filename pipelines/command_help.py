"""What `beam-influence --help` says of each command."""

from __future__ import annotations

from typing import NamedTuple

GROUP_HELP = {
    "data": "what is read",
    "model": "what is explained",
    "method": "how influence is computed",
    "settings": "what your own curvature is given",
    "results": "what is written",
    "execution": "how it runs (none of these changes the result)",
    "evaluate": "what is evaluated, and how",
    "report": "what is shown",
}

_RUN_DESCRIPTION = """\
Which training examples made the model say this? Computes the influence of every training example on the
model's loss at every test point, and writes the strongest ones (and more, see --outputs) as Parquet.

A positive influence means that removing the training example would raise the test loss: the example helps.
A negative one means that it harms. The column loss_change is that predicted change itself."""

_RUN_EPILOG = """\
Any other option goes to Beam, for example --parallelism=8 with --runner flink.

Example:
  beam-influence run --model model.keras --train 'train-*.tfrecord.gz' --test 'test-*.tfrecord.gz' \\
      --output influence --top_k 10 --outputs top_k,self_influence"""

_FIT_DESCRIPTION = """\
Fits the curvature of the training set and saves it, for any number of later runs:
`beam-influence run --curvature_path OUTPUT/curvature`."""

_FIT_EPILOG = """\
Example:
  beam-influence fit --model model.keras --train 'train-*.tfrecord.gz' --curvature gauss_newton --output fitted
  beam-influence run --model model.keras --train 'train-*.tfrecord.gz' --test 'test-*.tfrecord.gz' \\
      --curvature_path fitted/curvature --output influence"""

_INDEX_DESCRIPTION = """\
Embeds the training set once into r numbers for each example, whose inner products with those of a test point are
influence: `beam-influence query` then answers new test points without the training set and its gradients.
With --update, only files that the index lacks are embedded."""

_INDEX_EPILOG = """\
Example:
  beam-influence index --model model.keras --train 'train-*.tfrecord.gz' --curvature arnoldi --rank 200 --output indexed
  beam-influence index --model model.keras --train 'more-*.tfrecord.gz' --output indexed --update
  beam-influence query --model model.keras --index indexed --test 'test-*.tfrecord.gz' --output influence"""

_QUERY_DESCRIPTION = """\
The influence of the examples in an index on test points, as the command run has it, from the index alone."""

_PLAN_DESCRIPTION = """\
What will a run take? Checks the options of a run as the command run does, runs a sample of its files on this machine (less
than a minute for most models), and says: passes, FLOPs, bytes read and shuffled, seconds, memory, worker-hours.
Nothing is written to OUTPUT. For the command fit give --outputs curvature, for index --outputs index."""

_PLAN_EPILOG = """\
Example:
  beam-influence plan --model model.keras --train 'train-*.tfrecord.gz' --test 'test-*.tfrecord.gz' --output influence \\
      --weights all --curvature ekfac --plan_workers 20"""

_EVALUATE_DESCRIPTION = """\
How good are the scores of finished runs? Measures of the field, several runs side by side, with standard errors.
Retraining runs on Beam (any other option goes to it); what each measure means is in docs/evaluation.md."""

_REPORT_DESCRIPTION = """\
A finished run as one page: its test points as themselves, with their predictions and the training examples that helped and
harmed most; suspicious labels; groups; the run, and how far to trust it. The file asks nothing of the network."""

_REPORT_EPILOG = """\
Any other option goes to Beam's file systems, such as --s3_endpoint_url.

Example:
  beam-influence report influence --output report.html"""

_DEMO_DESCRIPTION = """\
Real data that come with this package or with scikit-learn, of which 5 % of the labels are made wrong: writes files, trains a
small Keras model, runs the commands run and report on them, and says how many of the wrong labels were found."""

_DEMO_EPILOG = """\
Example:
  beam-influence demo digits
  beam-influence demo text --output out/text"""


class CommandHelp(NamedTuple):
    """A command in one line, in some, and its examples."""

    summary: str
    description: str
    epilog: str | None = None


COMMAND_HELP = {
    "demo": CommandHelp("real data, a model, a run and its report, in a minute", _DEMO_DESCRIPTION, _DEMO_EPILOG),
    "run": CommandHelp("influence of training examples on test points", _RUN_DESCRIPTION, _RUN_EPILOG),
    "index": CommandHelp("r numbers for each training example, for any number of later queries", _INDEX_DESCRIPTION, _INDEX_EPILOG),
    "query": CommandHelp("influence of indexed training examples on test points", _QUERY_DESCRIPTION, _INDEX_EPILOG),
    "fit": CommandHelp("the curvature of a training set, saved for later runs", _FIT_DESCRIPTION, _FIT_EPILOG),
    "plan": CommandHelp("what a run will take, before it", _PLAN_DESCRIPTION, _PLAN_EPILOG),
    "evaluate": CommandHelp("how good scores are", _EVALUATE_DESCRIPTION),
    "report": CommandHelp("a finished run as a page that a person reads", _REPORT_DESCRIPTION, _REPORT_EPILOG),
}
