"""Does a single file keep several processes busy? The same job over one TFRecord file, read whole and in shards.

`benchmarks.scale`'s network and examples, repeated until the file is as large as is asked for. Each half second it is read from /proc
(Linux) which workers have used the CPU; starting them and their imports are included.

    python -m benchmarks.one_file [--megabytes 200] [--workers 2] [--shard_size BYTES] [--folder out/one_file]
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pyarrow.parquet as pq

from benchmarks import scale

BUSY = 0.8
"""The part of the time in which one worker works that all must work in."""
_INTERVAL, _AT_WORK = 0.5, 0.05  # seconds, and the part of them on a CPU


def main() -> int:
    """Makes the file, runs the job both ways, prints the table; returns 1 when workers waited for each other or the answers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="of the file")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--shard_size", type=int, help="bytes (default: the option's)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/one_file"), help="where the data goes")
    options = parser.parse_args()
    scale.in_child("make", options.folder, scale.SHARD)
    file = make_file(options.folder, options.megabytes << 20)
    size = file.stat().st_size
    print(f"one file of {size / 2**20:,.0f} MiB, {options.workers} processes\n{'':<12}{'wall s':>8}{'all at work':>13}")
    tops, together = [], 0.0
    for name, shard_size in (("whole", size), ("in shards", options.shard_size)):
        wall, together = run_job(options.folder, file, options.workers, shard_size)
        print(f"{name:<12}{wall:>8.1f}{together:>13.0%}")
        tops.append(pq.read_table(options.folder / "influence" / "top_k").sort_by([("test_id", "ascending"), ("rank", "ascending")]))
    same = tops[0].select(["test_id", "rank", "train_id"]).equals(tops[1].select(["test_id", "rank", "train_id"]))
    print(f"the same training examples in the same order: {'yes' if same else 'NO'}")
    return int(not same or together < BUSY)


def make_file(folder: pathlib.Path, size: int) -> pathlib.Path:
    """The first file of `scale` again and again, in one file of at least `size` bytes; kept when it is there."""
    one, whole = folder / "train-00000.tfrecord", folder / f"whole-{size}.tfrecord"
    if not whole.exists():
        with open(whole.with_suffix(".tmp"), "wb") as target:
            while target.tell() < size:
                with open(one, "rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
        whole.with_suffix(".tmp").rename(whole)
    return whole


def run_job(folder: pathlib.Path, file: pathlib.Path, workers: int, shard_size: int | None) -> tuple[float, float]:
    """Wall seconds, and the part of the time with a worker at work in which all were."""
    command = [
        str(pathlib.Path(sys.executable).with_name("beam-influence")), "run", "--model", str(folder / "model.keras"), "--train", str(file),
        "--test", str(folder / "test.tfrecord"), "--output", str(folder / "influence"), "--damping", str(scale.DAMPING),
        "--top_k", str(scale.TOP_K), "--threads", "1", "--overwrite", "--runner", "local", "--workers", str(workers),
        *([] if shard_size is None else ["--shard_size", str(shard_size)]),
    ]  # fmt: skip
    started = time.monotonic()
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    before: dict[int, float] = {}
    at_work: list[int] = []
    while job.poll() is None:
        used = cpu_seconds_below(job.pid)
        at_work.append(sum(used[process] - before.get(process, 0.0) > _AT_WORK * _INTERVAL for process in used))
        before = used
        time.sleep(_INTERVAL)
    if job.returncode:
        raise SystemExit(job.returncode)
    return time.monotonic() - started, sum(count >= workers for count in at_work) / max(sum(count > 0 for count in at_work), 1)


def cpu_seconds_below(pid: int) -> dict[int, float]:
    """The CPU seconds so far of each process below one."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        process = int(stat.parent.name)
        parents[process] = int(fields[1])
        seconds[process] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_below(process: int) -> bool:
        while (process := parents.get(process, 0)) > 1:
            if process == pid:
                return True
        return False

    return {process: spent for process, spent in seconds.items() if is_below(process)}


if __name__ == "__main__":
    sys.exit(main())
