"""Where a run goes: `--runner` and its companions become Beam's own options, or are refused before anything starts.

    local      in this process (the default); with --workers N in N processes of this machine
    prism      Beam's portable runner, one program beside this one
    flink      a Flink cluster, through Beam's job server (--job_endpoint) or by --flink_master
    dataflow   Google Cloud Dataflow

Any other name is a runner of Beam, such as `FlinkRunner`, whose options are passed on without a check. Each engine is one file here, and
one line of the table in `choose.py`.
"""

from beam_influence.pipelines.runners.choose import add_options as add_options
from beam_influence.pipelines.runners.choose import as_arguments as as_arguments
from beam_influence.pipelines.runners.choose import choose_engine as choose_engine
from beam_influence.pipelines.runners.choose import open_file_systems as open_file_systems
from beam_influence.pipelines.runners.runner import Engine as Engine
