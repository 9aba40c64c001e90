"""The command line `beam-influence`."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from beam_influence.influence_ops.redact import without_secrets
from beam_influence.pipelines.command_parser import CONFIGURED
from beam_influence.pipelines.command_parser import parser as parser
from beam_influence.pipelines.config import own_options
from beam_influence.pipelines.option_file import file_options
from beam_influence.pipelines.options.option import FITTING
from beam_influence.pipelines.programs import PROGRAMS
from beam_influence.pipelines.unknown_options import refuse_misplaced


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a command, and what is left over for Beam.

    Raises:
      ValueError: a curvature of the user's own can't be used, an option is another command's, or a file of options is wrong.
    """
    first = argparse.ArgumentParser(prog="beam-influence", add_help=False, allow_abbrev=False)
    first.add_argument("--curvature", default="")
    first.add_argument("--config")
    first.add_argument("--set", action="append", default=[])
    early = first.parse_known_args(words)[0]
    of_file: dict[str, Any] = {}
    if words and words[0] in CONFIGURED and (early.config or early.set):
        of_file = file_options(words[0], early.config, early.set, words)
    curvature = early.curvature or of_file.get("curvature") or ""
    kind = None
    if ":" in curvature and words[0] in (*FITTING, "plan"):
        from beam_influence.influence_ops.curvature import curvature_class  # TensorFlow

        kind = curvature_class(curvature)
    known, beam_arguments = parser(kind, of_file).parse_known_args(words)
    refuse_misplaced(beam_arguments, known.command)
    if kind is not None:
        given = [f"{name}={value}" for name, field in own_options(kind).items() if (value := getattr(known, name)) != field.default]
        known.curvature_settings = ",".join(filter(None, [known.curvature_settings, *given])) or None
    return known, beam_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 1 the run failed, 2 wrong options or input, 130 interrupted.

    Raises:
      SystemExit: `--help`, or an option that the command does not have, which argparse tells by itself.
    """
    parsed: list[tuple[argparse.Namespace, list[str]]] = []
    refused = exit_status(lambda: parsed.append(parse(sys.argv[1:] if arguments is None else arguments)))
    if refused:
        return refused
    ((known, beam_arguments),) = parsed
    program, failed = PROGRAMS[known.command]
    status = exit_status(lambda: program(known, beam_arguments), failed)
    if arguments is None:
        gc.freeze()  # the process ends: nobody need go through all that it holds once more
    if arguments is None and known.command == "demo":
        # It trains in this process, and threads of TensorFlow's that read what it trained on have ended it with "Aborted".
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def exit_status(program: Callable[[], int | None], failed: str = "the run failed: ") -> int:
    """Runs a program and tells on stderr why it ended, if not well: 0 done, 1 the run failed, 2 wrong options or input, 130 interrupted."""
    status = 0
    try:
        status = program() or 0
        sys.stdout.flush()
    except ValueError as error:
        print(f"beam-influence: {without_secrets(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads, such as head, has enough; Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("beam-influence: interrupted; the same command goes on with what is finished", file=sys.stderr)
        return 130
    except Exception as error:
        from beam_influence.pipelines.run_pipeline import RunFailedError  # TensorFlow and Beam: seconds that wrong options need not wait

        if not isinstance(error, RunFailedError):
            raise
        print(f"beam-influence: {failed}{without_secrets(str(error))}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
