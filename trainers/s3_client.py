"""boto3's client set up for bounded waiting, and the meaning of what it raises.

Knows no operations and no keys. Called by `s3_storage` alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import urllib3
from botocore import exceptions as boto
from botocore.config import Config
from s3transfer import exceptions as transfer

from trainers.storage import NoSuchObject, StorageDenied, StorageError, StorageFull, StorageUnavailable

CHECKSUMS = ("when_supported", "when_required")
_FULL = {"QuotaExceeded", "ServiceQuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_PASSING = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentChecksumMismatch", "SlowDown", "OperationAborted"}
"""Codes with which stores answer 4xx although asking again may help: cut or damaged on the way, too much at once."""
_MISCONFIGURED = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.UnknownTokenProviderError,
    boto.ProfileNotFound,
    boto.ParamValidationError,
)
_RAISED = (
    boto.ClientError,
    boto.BotoCoreError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    transfer.RetriesExceededError,
    transfer.S3UploadFailedError,
    transfer.S3DownloadFailedError,
    transfer.S3ValidationError,
    CancelledError,
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for the store: seconds to connect, seconds of silence, tries, and the slowest transfer that is borne."""

    connect: float = 5.0
    silence: float = 30.0
    attempts: int = 4
    grace: float = 60.0
    bytes_per_second: float = 64 * 2**10

    def seconds_for(self, size: int) -> float:
        """Longest time that this many bytes may take."""
        return self.grace + size / self.bytes_per_second


def connect(checksums: str, patience: Patience) -> Any:
    """An S3 client as the environment says; threads may share it. Raises StorageDenied for an environment that contradicts itself."""
    if checksums not in CHECKSUMS:
        raise ValueError(f"checksums is {' or '.join(CHECKSUMS)}, not {checksums!r}")
    for name in ("boto3", "botocore", "s3transfer"):
        logging.getLogger(name).setLevel(logging.WARNING)  # at DEBUG they write session tokens and signed headers
    has_endpoint = any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    config = Config(
        signature_version="s3v4",
        connect_timeout=patience.connect,
        read_timeout=patience.silence,
        retries={"mode": "standard", "total_max_attempts": patience.attempts},
        max_pool_connections=40,
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        # Buckets are seldom names in the DNS of a store that is not Amazon's.
        s3={"addressing_style": "path"} if has_endpoint else None,
    )
    try:
        session = boto3.Session(region_name=os.environ.get("AWS_REGION") or None)
        return session.client("s3", region_name=session.region_name or "us-east-1", config=config)
    except (boto.BotoCoreError, ValueError) as error:
        raise StorageDenied(f"the S3 settings in the environment can't be used ({type(error).__name__})") from error


@contextmanager
def s3_errors(key: str) -> Generator[None]:
    """What the client raises as errors of a Storage."""
    try:
        yield
    except _RAISED as error:
        raise _meaning(error, key) from error


def answered(error: boto.ClientError) -> int:
    """The status that the store answered with."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _meaning(error: BaseException, key: str) -> StorageError:
    if isinstance(error, boto.ClientError):
        return _of_answer(answered(error), str(error.response.get("Error", {}).get("Code", "")), key)
    if isinstance(error, _MISCONFIGURED):
        return StorageDenied(f"{key}: S3 can't be asked ({type(error).__name__})")
    if isinstance(error, boto.FlexibleChecksumError):
        return StorageUnavailable(f"{key}: what the store sent does not have its checksum")
    cause = getattr(error, "last_exception", None) or error
    return StorageUnavailable(f"{key}: the store did not answer, or not to the end ({type(cause).__name__})")


def _of_answer(status: int, code: str, key: str) -> StorageError:
    """Only status and code are told: what else a store says may repeat parts of the request."""
    told = f"{key}: the store answered {status} {code}"
    if status == 507 or code in _FULL:
        return StorageFull(told)
    if code == "NoSuchBucket":
        return StorageDenied(f"{key}: the bucket does not exist")
    if status == 404:
        return NoSuchObject(key)
    if status in (408, 409, 412, 429) or (status >= 500 and status != 501) or code in _PASSING:
        return StorageUnavailable(told)
    return StorageDenied(told)
