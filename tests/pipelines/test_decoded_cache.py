"""`--decoded_cache` changes no bit of a result, decodes each example once, and is used where it pays."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.reading.decode import RowDecoder
from beam_influence.influence_ops.results.array_folder import LocalFiles
from beam_influence.pipelines import plan_decoded
from beam_influence.pipelines.choosing.choose import choose_and_prepare
from beam_influence.pipelines.clear_output import clear_output
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.transforms.decoded_cache import DecodedCache
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import ShardReader
from tests.pipelines.digits_job import SIZES, DigitsJob, files_below, framed, read, run_quietly

ROOM = "1GB"


def decoded_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of training files each call decodes from now on."""
    rows: list[int] = []
    real = RowDecoder.decode

    def watched(self: RowDecoder, read: Any, file: str) -> Any:
        rows.append(len(read.positions))
        return real(self, read, file)

    monkeypatch.setattr(RowDecoder, "decode", watched)
    return rows


@pytest.fixture
def weighted(job: DigitsJob, tmp_path: pathlib.Path) -> str:
    """Two training files with weights and ids; rows that can't be decoded, some of them a whole batch, and one with a damaged checksum."""
    split = job.splits["train"]
    for number, rows in enumerate((range(0, 130), range(130, SIZES["train"]))):
        bad: dict[str, tf.train.Feature | None] = {"image": None}
        change = {row: bad for row in (3, *range(64, 128), 200)}
        weight = tf.train.FloatList
        records = [
            split.example(row, {"w": tf.train.Feature(float_list=weight(value=[0.5 + row % 3])), **change.get(row, {})}) for row in rows
        ]
        data = bytearray(framed(records))
        data[-30] ^= 1
        (tmp_path / f"train-{number}.tfrecord").write_bytes(data)
    return f"{tmp_path}/train-*.tfrecord"


def test_tables_are_the_same_bit_for_bit(
    job: DigitsJob, weighted: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"train": weighted, "weight_feature": "w", "id_feature": "name", "max_rejected": 100}
    options["outputs"] = "scores,self_influence"
    runs = {said: job.config(tmp_path / said, decoded_cache=said, **options) for said in ("off", ROOM)}
    manifests, decoded = {}, {}
    for said, config in runs.items():
        rows = decoded_rows(monkeypatch)
        run_quietly(config, "--direct_runner_bundle_repeat=1")
        decoded[said] = sum(rows)
        monkeypatch.undo()
        manifests[said] = json.loads((tmp_path / said / "manifest.json").read_text())
    assert manifests["off"]["counts"] == manifests[ROOM]["counts"]
    assert manifests["off"]["counts"]["curvature"]["rejected"] == 66 + 2
    for table in ("scores", "self_influence", "rejected"):
        found, expected = (read(tmp_path / said, table) for said in runs)
        order = [(name, "ascending") for name in found.column_names if name not in ("influence", "residual")]
        assert found.sort_by(order).equals(expected.sort_by(order)), table
    assert "decoded_cache" not in manifests["off"] and manifests[ROOM]["decoded_cache"]["used"]
    # A whole pass at least is not decoded again. Bundles run twice, at times at once, when both decode; the plan looks at some rows, too.
    assert decoded["off"] - decoded[ROOM] >= SIZES["train"]
    assert not any("decoded" in path for path in files_below(tmp_path / ROOM))


def test_a_resumed_run_takes_up_what_was_decoded(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    config = job.config(tmp_path / "out", decoded_cache=ROOM, outputs="self_influence", test=None)
    prepared = choose_and_prepare(config)[1]
    assert prepared.decoded is not None and prepared.decoded.cache is not None
    folder = pathlib.Path(prepared.decoded.cache.folder)
    LocalFiles().write(f"{folder}/00000.arrow", b"")
    LocalFiles().write(f"{folder}x/00000.arrow", b"")  # of other files, options or versions
    clear_output(config, ("self_influence",), "manifest.json", prepared.kept(config))
    assert files_below(tmp_path / "out") == {f".work/decoded/{folder.name}/00000.arrow"}
    for changed in ({"batch_size": 50}, {"id_feature": "name"}, {"resume": False}):
        other = dataclasses.replace(config, **changed)
        prepared = choose_and_prepare(other)[1]
        assert str(folder) not in prepared.kept(other)
    clear_output(other, ("self_influence",), "manifest.json", prepared.kept(other))
    assert not files_below(tmp_path / "out")


def test_a_shard_that_takes_more_than_its_share_is_decoded_anew(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    _, prepared = choose_and_prepare(job.config(tmp_path / "out", files=1, outputs="self_influence", test=None))
    assert prepared.train_features is not None
    for share, files in ((0.01, 0), (10.0, 1)):
        folder = tmp_path / str(share)
        reader = ShardReader("score", prepared.train_features, 64, Progress(None), DecodedCache(str(folder), "train", share))
        first, second = ([np.asarray(batch.inputs) for batch, _ in reader.read(prepared.train[0])] for _ in range(2))
        assert [images.tobytes() for images in first] == [images.tobytes() for images in second] and len(first) == 5
        assert len(files_below(folder)) == files


def test_auto_keeps_what_is_worth_it(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = job.config(tmp_path / "out", outputs="self_influence", test=None)
    found = choose_and_prepare(config)[1].decoded
    assert found is not None and found.cache is None and "would save" in found.why
    monkeypatch.setattr(plan_decoded, "_LEAST_SECONDS", -1.0)
    monkeypatch.setattr(plan_decoded, "_LEAST_SHARE", -10.0)  # whatever was measured
    found = choose_and_prepare(config)[1].decoded
    assert found is not None and found.cache is not None and found.passes == 2
    example = 64 * 4 + 8 + 8 + 15  # an image, its label, its place, its group
    assert SIZES["train"] * example < found.size < 1.5 * SIZES["train"] * example
    with pytest.raises(ValueError, match=r"--decoded_cache 50KB: .* in each pass: 8\d\.\d KiB are more than 48\.8 KiB; give more, or off"):
        choose_and_prepare(dataclasses.replace(config, decoded_cache="50KB"))
    with pytest.raises(ValueError, match="--decoded_cache 'yes' must be a number of bytes above 0, such as 4GB or 512MiB, or auto, or off"):
        InfluenceConfig(model="m", output="o", train="t", outputs="self_influence", decoded_cache="yes")
