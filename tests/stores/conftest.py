"""An S3 server on the loopback device (moto's, in a process of its own), and the digits job in a bucket of it."""

from __future__ import annotations

import dataclasses
import pathlib
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from beam_influence.pipelines.config import InfluenceConfig
from tests.pipelines.digits_job import DigitsJob

ACCESS = {"s3_access_key_id": "test", "s3_secret_access_key": "test", "s3_region_name": "us-east-1"}


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A bucket with the job's model and files; `options` are those of Beam with which it is reached."""

    name: str
    options: tuple[str, ...]
    client: Any
    job: DigitsJob

    def path(self, name: str) -> str:
        return f"s3://{self.name}/{name}"

    def put(self, folder: pathlib.Path, prefix: str) -> None:
        """Uploads every file of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.client.put_object(Bucket=self.name, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())

    def keys(self, prefix: str) -> set[str]:
        """The names of all objects below a prefix, from there on."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=f"{prefix}/")
        return {item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", ())}

    def get(self, prefix: str, folder: pathlib.Path) -> pathlib.Path:
        """Downloads what is below a prefix."""
        for key in self.keys(prefix):
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(self.client.get_object(Bucket=self.name, Key=f"{prefix}/{key}")["Body"].read())
        return folder

    def config(self, output: str, files: int = 3, **options: Any) -> InfluenceConfig:
        """The job's configuration, with every path in the bucket."""
        local = self.job.config(pathlib.Path("unused"), files, **options)
        paths: dict[str, str | None] = {"model": self.path("model.keras"), "output": self.path(output)}
        for split in ("train", "test"):
            pattern = getattr(local, split)
            if pattern is not None and split not in options:
                folder = pathlib.Path(pattern).parent
                if not self.keys(folder.name):
                    self.put(folder, folder.name)
                paths[split] = self.path(f"{folder.name}/part-*.tfrecord")
        return dataclasses.replace(local, **paths)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The server's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, "the S3 server ended"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def bucket(server: str, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    client = boto3.client(
        "s3",
        endpoint_url=server,
        region_name=ACCESS["s3_region_name"],
        aws_access_key_id=ACCESS["s3_access_key_id"],
        aws_secret_access_key=ACCESS["s3_secret_access_key"],
    )
    name = f"influence-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=name)
    options = tuple(f"--{option}={value}" for option, value in {"s3_endpoint_url": server, **ACCESS}.items())
    found = Bucket(name, options, client, DigitsJob(tmp_path_factory.mktemp("digits")))
    client.upload_file(str(found.job.model), name, "model.keras")
    return found
