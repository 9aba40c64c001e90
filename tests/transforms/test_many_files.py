"""What many files cost: calls are counted, on a store that lists 1,000 names in a page and deletes as many in a call; nothing is timed."""

from __future__ import annotations

import json
import pathlib
import random
import threading
import time
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.io.filesystem import BeamIOError
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from beam_influence.influence_ops.results.listed_files import SourceFile, WrittenFile, listed, to_parquet
from beam_influence.influence_ops.results.result_files import read_manifest, table_files, write_manifest, written_files
from beam_influence.transforms import ReadShards
from beam_influence.transforms.clear_work import clear_work
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.file_list import FileList, list_shards
from beam_influence.transforms.files import BeamFiles, match_files
from beam_influence.transforms.folders import delete_files, list_folder
from beam_influence.transforms.in_parallel import in_parallel
from benchmarks.slow_store import STORE, SlowStore

IN = "slow://in/a/train-"


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    STORE.clear()
    yield
    STORE.clear()


def test_files_are_found_by_listing_alone() -> None:
    STORE.fill(IN, ".rec", b"12345", 5000)
    shards = list_shards("train", [f"{IN}*.rec", f"{IN}000[1-4]*.rec"])  # some twice
    assert STORE.calls == {"list": 6 + 6}
    assert len(shards) == 5000 and shards.total_bytes == 25_000
    STORE.calls.clear()
    assert shards[4321] == Shard("train", 4321, f"{IN}0004321.rec", "train-0004321.rec", 5, 1.0) and not STORE.calls
    assert [shard.path for shard in shards] == [file.path for file in match_files([f"{IN}*.rec"])]


def test_paths_without_wildcards_are_looked_up_at_once() -> None:
    STORE.fill(IN, ".rec", b"1", 300)
    at_once, most, lock = 0, 0, threading.Lock()
    exists = SlowStore.exists

    def watched(self: SlowStore, path: str) -> bool:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.002)
        with lock:
            at_once -= 1
        return exists(self, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlowStore, "exists", watched)
        assert len(list_shards("train", [f"{IN}{number:07d}.rec" for number in range(300)])) == 300
    assert 4 < most <= 32


@pytest.mark.parametrize(("count", "wanted"), [(100_000, "00007"), (100_001, "000007")])
def test_names_order_as_numbers_do(count: int, wanted: str) -> None:
    STORE.fill(IN, ".rec", b"", count)
    shards = list_shards("train", [f"{IN}*"])
    keys = [shards[number].key for number in (7, count - 1)]
    assert keys[0] == wanted and len(keys[1]) == len(wanted)
    part = Shard("train", 1, "", "", 0, parts=200_000)
    assert part.key == "00001-000000"


def test_a_list_has_one_digest_and_one_order() -> None:
    sizes = [random.Random(3).choice((1, 5, 9)) for _ in range(25_000)]
    shards = [Shard("train", number, f"p/{number}", f"{number}", size, 2.0) for number, size in enumerate(sizes)]
    files = FileList.of(shards)
    halves = FileList("train", pa.concat_tables([files.table.slice(0, 7), files.table.slice(7)]))
    assert files.digest() == halves.digest() != FileList.of(shards[1:]).digest()
    assert [shard.ordinal for shard in files.longest_first()] == sorted(range(25_000), key=lambda n: (-sizes[n], n))
    assert list(files[3:9]) == shards[3:9] and list(files) == shards and files[-1] == shards[-1]


def test_the_graph_does_not_grow_with_the_files() -> None:
    def built(count: int) -> beam.Pipeline:
        STORE.clear()
        STORE.fill(IN, ".rec", b"1", count)
        pipeline = beam.Pipeline(FnApiRunner())
        names = (
            pipeline
            | ReadShards(list_shards("train", [f"{IN}*"]), None, 1 << 20, work="slow://out/.work")
            | beam.Map(lambda shard: (shard.ordinal, shard.name))
        )
        assert_that(names, equal_to([(number, f"train-{number:07d}.rec") for number in range(count)]))
        return pipeline

    small, large = (built(count) for count in (1001, 10_001))
    # The files of assert_that's own expectation are in it, 20 bytes each.
    grown = large.to_runner_api().ByteSize() - small.to_runner_api().ByteSize()
    assert grown < 9000 * 40
    built(1001).run()
    assert STORE.calls["open"] == 1 and STORE.calls["create"] == 1


def test_a_store_that_deletes_one_by_one_is_asked_by_many_at_once() -> None:
    STORE.clear(batches=False)
    STORE.fill(IN, ".rec", b"1", 1000)
    asked = set()
    delete = SlowStore.delete

    def watched(self: SlowStore, paths: list[str]) -> None:
        asked.add(len(paths))
        delete(self, paths)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlowStore, "delete", watched)
        delete_files(list_folder("slow://in"))
    assert asked == {100} and STORE.calls["delete"] == 1000 and not list(list_folder("slow://in"))


def test_a_run_of_many_files_ends_in_few_calls() -> None:
    """What is complete is not listed; what is left over is deleted in batches."""
    for table in ("scores", "top_k"):
        STORE.fill(f"slow://out/{table}/shard-", ".parquet", b"1", 20_000)
    STORE.fill("slow://out/.work/queries/", ".npy", b"1", 5000)
    BeamFiles().write("slow://out/scores/.shard.parquet.0123.tmp", b"x")
    STORE.calls.clear()
    clear_work("slow://out", ("scores", "top_k"), "slow://out/.work")
    assert STORE.calls["list"] == 6 + 2 and STORE.calls["delete"] <= 51 and sum(STORE.calls.values()) <= 60
    assert len(list(list_folder("slow://out"))) == 40_000


def test_only_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_influence.transforms.folders.time.sleep", lambda seconds: None)
    delete, errors = SlowStore.delete, [ConnectionResetError("reset"), TimeoutError("late")]

    def failing(self: SlowStore, paths: list[str]) -> None:
        if errors:
            raise BeamIOError("Delete operation failed", {paths[0]: errors.pop()})
        delete(self, paths)

    monkeypatch.setattr(SlowStore, "delete", failing)
    STORE.fill(IN, ".rec", b"1", 2)
    delete_files(list_folder("slow://in"))
    assert not list(list_folder("slow://in")) and not errors
    STORE.fill(IN, ".rec", b"1", 2)
    errors += [ConnectionResetError("reset"), PermissionError("not yours")]
    with pytest.raises(OSError, match=r"can't delete 'slow://in/a/train-0000000.rec'.*not yours"):
        delete_files(list_folder("slow://in"))


FILES = [WrittenFile("scores", f"scores/shard-{number:05d}.parquet", number, 7) for number in range(25_000)]
CONTENT = {"counts": {}, "config": {}, "curvature": {}}


def test_a_manifest_is_small_and_lists_all(tmp_path: pathlib.Path) -> None:
    sizes = []
    for count in (10, len(FILES)):
        write_manifest(str(tmp_path), FILES[:count][::-1] + FILES[:3], CONTENT)
        sizes.append((tmp_path / "manifest.json").stat().st_size)
        manifest = read_manifest(str(tmp_path))
        rows = sum(range(count))
        assert manifest["tables"] == {"scores": {"files": count, "rows": rows, "bytes": 7 * count}}
        assert list(written_files(str(tmp_path), manifest)) == FILES[:count]
    assert sizes[1] < sizes[0] + 30
    assert next(table_files(str(tmp_path), "scores")) == f"{tmp_path}/scores/shard-00000.parquet"
    with pytest.raises(ValueError, match="wrote no top_k; run it with --outputs top_k"):
        table_files(str(tmp_path), "top_k")


def test_a_manifest_of_version_1_is_read(tmp_path: pathlib.Path) -> None:
    source = {"name": "a", "size": 2, "sha256": "0f"}
    files = [{"table": "index", "path": "index/shard-00000.parquet", "rows": 3, "bytes": 9, "source": source}]
    (tmp_path / "manifest.json").write_text(json.dumps({**CONTENT, "manifest_version": 1, "files": files}))
    manifest = read_manifest(str(tmp_path))
    assert manifest["tables"] == {"index": {"files": 1, "rows": 3, "bytes": 9}}
    wanted = WrittenFile("index", "index/shard-00000.parquet", 3, 9, SourceFile(**source))
    assert list(written_files(str(tmp_path), manifest)) == [wanted]
    files[0]["path"] = "index/../../secret"
    (tmp_path / "manifest.json").write_text(json.dumps({**CONTENT, "manifest_version": 1, "files": files}))
    with pytest.raises(ValueError, match="is damaged.*lists a file outside its table's folder"):
        read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_text(json.dumps({**CONTENT, "manifest_version": 3}))
    with pytest.raises(ValueError, match="has version 3; this program reads 1 and 2"):
        read_manifest(str(tmp_path))


def test_a_list_that_is_missing_damaged_or_leads_elsewhere_is_refused(tmp_path: pathlib.Path) -> None:
    write_manifest(str(tmp_path), FILES[:10], CONTENT)
    path = tmp_path / read_manifest(str(tmp_path))["file_list"]
    for data in (path.read_bytes()[:-9], b"", to_parquet(listed([WrittenFile("scores", "scores/../../secret", 1, 1)]))[1], None):
        path.unlink() if data is None else path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{path.name}', the list of the run's files, can't be read"):
            list(table_files(str(tmp_path), "scores"))


def test_calls_in_parallel_keep_their_order_and_are_bounded() -> None:
    begun = []

    def slow(number: int) -> int:
        begun.append(number)
        time.sleep(0.001 * (number % 3))
        if number == 50:
            raise OSError("50")
        return number

    results = in_parallel(slow, iter(range(10**9)), threads=4)
    assert [next(results) for _ in range(50)] == list(range(50))
    with pytest.raises(OSError, match="50"):
        next(results)
    assert max(begun) < 50 + 2 * 4
