"""The command line `beam-influence`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from pipelines.config import InfluenceConfig, option_type

_GROUP_HELP = {
    "data": "what is read",
    "model": "what is explained",
    "method": "how influence is computed",
    "results": "what is written",
    "execution": "how it runs (none of these changes the result)",
}

_RUN_DESCRIPTION = """\
Which training examples made the model say this? Computes the influence of every training example on the
model's loss at every test point, and writes the strongest ones (and more, see --outputs) as Parquet.

A positive influence means that removing the training example would raise the test loss: the example helps.
A negative one means that it harms. The column loss_change is that predicted change itself."""

_RUN_EPILOG = """\
Any other option goes to Beam, for example --runner=FlinkRunner --flink_master=HOST:8081, or, for two local
processes, --direct_running_mode=multi_processing --direct_num_workers=2.

Example:
  beam-influence run --model model.keras --train 'train-*.tfrecord.gz' --test 'test-*.tfrecord.gz' \\
      --output influence --top_k 10 --outputs top_k,self_influence"""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; the options of `run` are the fields of `InfluenceConfig`."""
    top = argparse.ArgumentParser(
        prog="beam-influence", description="Training-data attribution by influence functions, on Apache Beam.", allow_abbrev=False
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="influence of training examples on test points",
        description=_RUN_DESCRIPTION,
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    groups = {}
    for field in dataclasses.fields(InfluenceConfig):
        name = field.metadata["group"]
        if name not in groups:
            groups[name] = run.add_argument_group(f"{name}: {_GROUP_HELP[name]}")
        required = field.default is dataclasses.MISSING
        kind = option_type(field)
        text = field.metadata["help"].replace("%", "%%")
        if not required and kind is not bool and field.default is not None:
            text += f" (default: {field.default})"
        if kind is bool:
            groups[name].add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            groups[name].add_argument(
                f"--{field.name}",
                type=kind,
                required=required,
                default=None if required else field.default,
                choices=field.metadata["choices"],
                metavar=None if field.metadata["choices"] else kind.__name__.upper(),
                help=text,
            )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 1 the run failed, 2 wrong options or input."""
    known, beam_arguments = parser().parse_known_args(arguments)
    from pipelines.launch import RunFailedError, run, summary_text  # TensorFlow and Beam: seconds that --help need not wait

    options = {field.name: getattr(known, field.name) for field in dataclasses.fields(InfluenceConfig)}
    try:
        summary = run(InfluenceConfig(**options), beam_arguments)
    except ValueError as error:
        print(f"beam-influence: {error}", file=sys.stderr)
        return 2
    except RunFailedError as error:
        print(f"beam-influence: the run failed: {error}", file=sys.stderr)
        return 1
    print(summary_text(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
