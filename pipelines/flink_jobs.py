"""Cancels a job on a Flink cluster, by the cluster's REST interface.

Beam's job server takes a request to cancel a job, but does not pass it on: the cluster would work on for nobody.
"""

from __future__ import annotations

import json
import time
import urllib.request

_SECONDS = 10.0
_ENDED = ("FINISHED", "FAILED", "CANCELED")


def cancel_job(master: str, name: str, patience: float = 60.0) -> bool:
    """Cancels a job and waits until it has ended.

    Args:
      master: HOST:PORT of the cluster's REST interface, or its URL.
      name: the job's name, which no other has. It may still be on its way from the job server to the cluster.
      patience: for how many seconds to wait.

    Returns:
      Whether the cluster knows the job and it has ended.
    """
    address = master if "://" in master else f"http://{master}"
    deadline = time.monotonic() + patience
    asked: set[str] = set()
    try:
        while time.monotonic() < deadline:
            with urllib.request.urlopen(f"{address}/jobs/overview", timeout=_SECONDS) as answer:
                found = {job["jid"]: job["state"] for job in json.load(answer)["jobs"] if job["name"] == name}
            if found and set(found.values()) <= set(_ENDED):
                return True
            for job in set(found) - asked:
                request = urllib.request.Request(f"{address}/jobs/{job}?mode=cancel", method="PATCH")
                urllib.request.urlopen(request, timeout=_SECONDS).close()
                asked.add(job)
            time.sleep(0.5)
    except (OSError, ValueError, KeyError):  # no answer, or not a cluster's
        return False
    return False
