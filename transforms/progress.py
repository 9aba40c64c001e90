"""Progress of a run on this machine: workers send one small datagram per batch to the launcher.

Beam's local runners report metrics only when a pipeline has ended. Datagrams on the loopback device cost
nothing when nobody listens, and a lost one only makes the bar late.
"""

from __future__ import annotations

import json
import socket


class Progress:
    """Sends what a stage has done to `address` (host, port); does nothing without one."""

    def __init__(self, address: tuple[str, int] | None):
        self._address = address
        self._socket: socket.socket | None = None

    def __getstate__(self) -> dict:
        return {"_address": self._address, "_socket": None}

    def report(self, stage: str, examples: int = 0, shards: float = 0) -> None:
        """Adds to the stage's counts."""
        if self._address is None:
            return
        if self._socket is None:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        message = json.dumps({"stage": stage, "examples": examples, "shards": shards}).encode()
        try:
            self._socket.sendto(message, self._address)
        except OSError:  # a full buffer, or a launcher that has gone: progress is not worth a failure
            return
