"""Worker processes of this machine that are watched: when one dies, the run fails, and says so.

Beam's in-memory runner starts a process for each worker. When one is killed, say by the system for want of memory, it
tells only that a channel was closed, and when that happens before the process has connected, it waits for ever. Nor does
it give such a process the pipeline's options, without which it can't reach an object store. Importing this module mends
both for `--direct_running_mode=multi_processing`.
"""

from __future__ import annotations

import re
import threading
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    BeamFnControlServicer,
    ControlFuture,
    SubprocessSdkWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.portability.local_job_service import SubprocessSdkWorker
from google.protobuf import json_format

_Handler: Any = SubprocessSdkWorkerHandler  # Beam's decorator hides its type
_deaths: list[str] = []
_options: dict[str, object] = {}


def prepare_for(options: PipelineOptions) -> None:
    """Forgets what was told of earlier runs, and keeps the options of this one for its workers."""
    _deaths.clear()
    _options.clear()
    for name, value in options.get_all_options(drop_default=True).items():
        # The message knows no whole numbers, and a worker would refuse 2.0 processes.
        _options[f"beam:option:{name}:v1"] = str(value) if type(value) is int else value


def death() -> str | None:
    """Why a worker process of this run has died, or None."""
    return _deaths[0] if _deaths else None


@WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
class _WatchedWorkerHandler(_Handler):
    """Beam's own handler of a worker process, which answers for a process that has died."""

    _is_closing = False

    def start_worker(self) -> None:
        json_format.ParseDict(_options, self.provision_info.provision_info.pipeline_options)
        self.worker = SubprocessSdkWorker(self._worker_command_line, self.control_address, self.provision_info, self.worker_id)
        self.worker_thread = threading.Thread(name="run_worker", target=self._run)
        self.worker_thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
            status = 0
        except RuntimeError as error:  # its text ends with the exit status
            status = int(re.findall(r"-?\d+", str(error))[-1])
        by_signal = -status if status < 0 else status - 128  # the second: as a shell tells it
        if by_signal > 0 or not self._is_closing:
            how = f"was killed by signal {by_signal}" if by_signal > 0 else f"ended with status {status}"
            text = f"a worker process {how}; when that was for want of memory, use fewer --workers or a smaller --batch_size"
            _deaths.append(text)
            self._answer_with(text)

    def _answer_with(self, error: str) -> None:
        """Every request to the worker, those that wait and those to come, gets this error."""
        connection: Any = self.control_conn
        push = connection.push

        def answer(request: object) -> ControlFuture | None:
            if not isinstance(request, beam_fn_api_pb2.InstructionRequest):
                return push(request)  # the mark that ends the connection
            return ControlFuture(request.instruction_id, beam_fn_api_pb2.InstructionResponse(error=error))

        connection.push = answer
        for name, future in list(connection._futures_by_id.items()):
            future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=error))

    def close(self) -> None:
        self._is_closing = True
        # For a process that has not connected yet: it ends when it does. Beam would wait for it for ever.
        self.control_conn.push(BeamFnControlServicer._DONE_MARKER)
        super().close()
