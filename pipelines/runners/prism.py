"""`--runner prism`: Beam's portable runner, a program of its own on this machine."""

from __future__ import annotations

import os
import pathlib
import shutil

from beam_influence.pipelines.runners.runner import TIME_LIMIT, Engine, Request, Runner
from beam_influence.pipelines.runners.workers import ENVIRONMENT, connect, worker_arguments


class Prism(Runner):
    """The program `prism`, found or named by `--prism_location`."""

    name = "prism"
    beam_prefix = "prism_"
    options = (ENVIRONMENT, TIME_LIMIT)

    def engine(self, request: Request) -> Engine:
        given = request.beam.get("prism_location")
        if given is not None and "://" not in given and shutil.which(given) is None:
            raise ValueError(f"--prism_location {given!r} is not a program; {_how_to_get_it()}")
        if endpoint := request.beam.get("job_endpoint"):
            connect("--job_endpoint", endpoint, "start Prism there, or leave it out: it is then started here")
        found = [f"--prism_location={find_prism()}"] if given is None else []
        return Engine(["--runner=PrismRunner", *found, *worker_arguments(request.own.environment, request.beam, True)], True)


def prism_folder() -> pathlib.Path:
    """Where `engines/prism/get_prism.sh` puts the program: a folder for each version of Beam."""
    from apache_beam.version import __version__ as version

    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(os.environ.get("PRISM_CACHE") or f"{cache}/beam-influence/prism") / f"v{version}"


def _how_to_get_it() -> str:
    module = f"github.com/apache/beam/sdks/v2/go/cmd/prism@{prism_folder().name}"
    return f"build it with Go: GOBIN={prism_folder()} go install {module}"


def find_prism() -> str:
    """The Prism program: in our cache, on the PATH, or where `go install` or Beam put it.

    Raises:
      ValueError: there is none; the message says how to get one.
    """
    go_path = os.environ.get("GOPATH") or os.path.expanduser("~/go")
    folders = [str(prism_folder()), os.environ.get("PATH", ""), os.environ.get("GOBIN", ""), f"{go_path}/bin"]
    found = shutil.which("prism", path=os.pathsep.join(folder for folder in folders if folder))
    if found is None:
        raise ValueError(
            f"--runner prism: there is no program prism; {_how_to_get_it()}, or give --prism_location PATH, or --runner PrismRunner, "
            "with which Beam downloads it"
        )
    return found
