"""A progress bar on the terminal of a local run, fed by the workers' datagrams."""

from __future__ import annotations

import abc
import json
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Self, TextIO

from tqdm import tqdm


class ProgressListener(abc.ABC):
    """A context in which `address` receives progress, which a subclass takes in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Where workers send to."""
        return self._socket.getsockname()

    @abc.abstractmethod
    def update(self, stage: str, examples: int, shards: float) -> None:
        """So many more examples and shards of a stage are done."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                message = json.loads(self._socket.recv(4096))
                self.update(str(message["stage"]), int(message["examples"]), float(message["shards"]))
            except (TimeoutError, ValueError, KeyError, TypeError):
                continue


class ProgressBar(ProgressListener):
    """Shows progress as a bar for each stage.

    Args:
      shards: the number of files that each stage reads.
      stream: where the bars are drawn; nothing is drawn when it is not a terminal, unless `always`.
    """

    def __init__(self, shards: dict[str, int], stream: TextIO, always: bool = False):
        super().__init__()
        self._shards = shards
        self._stream = stream
        self._show = always or stream.isatty()
        self._bars: dict[str, tqdm] = {}
        self._examples: dict[str, int] = {}

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        for bar in self._bars.values():
            bar.close()

    def update(self, stage: str, examples: int, shards: float) -> None:
        if not self._show or stage not in self._shards:
            return
        if stage not in self._bars:
            self._bars[stage] = tqdm(
                total=self._shards[stage],
                desc=f"{stage:>9}",
                unit="file",
                file=self._stream,
                bar_format="{desc} {bar:30} {n:.6g}/{total_fmt} files, {elapsed}, {remaining} left{postfix}",
            )
        self._examples[stage] = self._examples.get(stage, 0) + examples
        bar = self._bars[stage]
        seconds = bar.format_dict["elapsed"]
        rate = f", {self._examples[stage] / seconds:,.0f}/s" if seconds >= 1 else ""
        bar.set_postfix_str(f"{self._examples[stage]:,} examples{rate}", refresh=False)
        bar.update(shards)


class PolledProgress:
    """Shows the state of a job elsewhere and how many examples its workers have counted, asked of its runner every some seconds; a context.

    Args:
      state: asks: the job's state. What it raises ends the showing, not the job.
      counts: asks: examples so far, by stage; empty where the runner does not tell before the end.
      stream: where it is shown; nothing is when it is not a terminal.
      seconds: between two questions.
    """

    def __init__(self, state: Callable[[], str], counts: Callable[[], Mapping[str, int]], stream: TextIO, seconds: float = 10.0):
        self._state = state
        self._counts = counts
        self._stream = stream
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)  # a question may still be on its way

    def _poll(self) -> None:
        bars: dict[str, tqdm] = {}
        whole = tqdm(desc="the job", file=self._stream, bar_format="{desc} {elapsed}")
        while not self._stop.wait(self._seconds):
            try:
                state, counts = self._state(), self._counts()
            except Exception:  # progress is not worth a failure
                break
            whole.set_description_str(f"the job is {state.lower()}", refresh=True)
            for stage, examples in counts.items():
                if stage not in bars:
                    shape = "{desc} {n_fmt} examples, {rate_fmt}, {elapsed}"
                    bars[stage] = tqdm(desc=f"{stage:>9}", unit="", file=self._stream, bar_format=shape)
                bars[stage].update(examples - bars[stage].n)
        for bar in (*bars.values(), whole):
            bar.close()
