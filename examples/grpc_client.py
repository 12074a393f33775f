"""A whole job over gRPC: upload the data, create the job, watch it, download the adapter. Needs grpcio and the stubs alone.

    python examples/grpc_client.py examples/tweets/tweets-train.jsonl --model smollm2-135m-instruct

The key is read from the environment variable TUNESMITH_API_KEY, the address from --address. With --ca the connection is
encrypted and the server must show a certificate that this authority has signed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from protos.tunesmith.v1 import files_pb2, jobs_pb2, types_pb2
from protos.tunesmith.v1.files_pb2_grpc import FilesStub
from protos.tunesmith.v1.jobs_pb2_grpc import JobsStub

CHUNK = 2**20
TRIES = 5
OVER = (types_pb2.JOB_STATUS_SUCCEEDED, types_pb2.JOB_STATUS_FAILED, types_pb2.JOB_STATUS_CANCELLED)
Metadata = list[tuple[str, str]]


def main() -> int:
    """Exit status 0 once the adapter is there, 1 when the job did not succeed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="JSON lines, one conversation each")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--address", default="127.0.0.1:8401")
    parser.add_argument("--ca", type=Path, help="PEM file of the authority of the server's certificate")
    parser.add_argument("--out", type=Path, default=Path("adapter"))
    given = parser.parse_args()
    key: Metadata = [("authorization", f"Bearer {os.environ['TUNESMITH_API_KEY']}")]
    with connect(given.address, given.ca) as channel:
        jobs, files = JobsStub(channel), FilesStub(channel)
        file = upload(files, given.data, key)
        say(f"uploaded {file.filename} as {file.id}")
        job = create(jobs, given.model, file.id, key)
        say(f"created {job.id}")
        job = watch(jobs, job.id, key)
        if job.status != types_pb2.JOB_STATUS_SUCCEEDED:
            sys.stderr.write(f"the job did not succeed: {job.error.code}: {job.error.message}\n")
            return 1
        download(jobs, job.id, given.out, key)
        say(f"{job.tuned_model} is in {given.out}")
    return 0


def say(line: str) -> None:
    """One line for the reader."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def connect(address: str, authority: Path | None) -> grpc.Channel:
    """A channel, encrypted where an authority is given."""
    if authority is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority.read_bytes()))


def upload(files: FilesStub, path: Path, key: Metadata) -> types_pb2.File:
    """Send a file; a stream that breaks goes on at the last byte that is safe."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    start = files_pb2.UploadStart(filename=path.name, purpose="fine-tune", bytes=path.stat().st_size, sha256=digest)
    # Without a byte: its answer names the upload, so that a broken stream can be gone on with.
    start.upload_id = files.UploadFile(iter([files_pb2.UploadFileRequest(start=start)]), metadata=key).upload_id
    for attempt in range(TRIES):
        offset = files.GetUpload(files_pb2.GetUploadRequest(upload_id=start.upload_id), metadata=key).received_bytes
        try:
            return files.UploadFile(upload_messages(start, path, offset), metadata=key).file
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or attempt == TRIES - 1:
                raise
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


def upload_messages(start: files_pb2.UploadStart, path: Path, offset: int) -> Iterator[files_pb2.UploadFileRequest]:
    """The start, then the file's bytes from `offset` on."""
    yield files_pb2.UploadFileRequest(start=start)
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(CHUNK):
            yield files_pb2.UploadFileRequest(chunk=types_pb2.Chunk(offset=offset, data=data))
            offset += len(data)


def create(jobs: JobsStub, model: str, file_id: str, key: Metadata) -> types_pb2.Job:
    """A job with the server's defaults but for the rank of the adapter."""
    tunesmith = types_pb2.TunesmithSpec(adapter=types_pb2.AdapterSpec(r=16))
    spec = types_pb2.JobSpec(model=model, training_file=file_id, tunesmith=tunesmith)
    return jobs.CreateJob(jobs_pb2.CreateJobRequest(spec=spec, idempotency_key=f"job-of-{file_id}"), metadata=key).job


def watch(jobs: JobsStub, job_id: str, key: Metadata) -> types_pb2.Job:
    """Print what happens until the job has ended; a broken watch goes on behind the last event."""
    last = 0
    while True:
        try:
            for update in jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id, after_seq=last), metadata=key):
                if update.WhichOneof("update") == "event":
                    last = update.event.seq
                    say(f"  {update.event.message}")
                elif update.job.status in OVER:
                    job = update.job
            return job
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(1)


def download(jobs: JobsStub, job_id: str, directory: Path, key: Metadata) -> None:
    """Every file of the adapter, its hash checked."""
    for artifact in jobs.ListArtifacts(jobs_pb2.ListArtifactsRequest(job_id=job_id), metadata=key).artifacts:
        if not artifact.name.startswith("adapter/"):
            continue
        path, digest = directory / artifact.name.removeprefix("adapter/"), hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for message in jobs.DownloadArtifact(jobs_pb2.DownloadArtifactRequest(job_id=job_id, name=artifact.name), metadata=key):
                file.write(message.chunk.data)
                digest.update(message.chunk.data)
        if digest.hexdigest() != artifact.sha256:
            raise ValueError(f"{artifact.name} did not arrive whole")


if __name__ == "__main__":
    sys.exit(main())
