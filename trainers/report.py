"""Tells the gateway what happens in a run, and brings back what the run should do.

Reports are numbered and wait in memory until the gateway has them; a thread sends them, so training never waits for
the network. While the gateway is away the run goes on. Used by `worker`; the loop sees only the `Reporter` protocol.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import grpc

from protos.tunesmith.v1 import runs_pb2 as pb
from protos.tunesmith.v1.runs_pb2_grpc import RunsStub
from trainers.failure import Stopped, TrainingFailed

HEARTBEAT_SECONDS = 1.0
CALL_SECONDS = 10.0
BATCH = 256
"""Reports of one call."""
PATIENCE_SECONDS = 3600.0
"""How long a run that is through waits for a gateway that is away; then its work lies in its last checkpoint."""
OVER = frozenset({grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND})
"""Answers after which this run must write nothing more."""
AT_ONCE = frozenset({"started", "notice", "finished", "failed"})
"""Reports that don't wait for the next beat: few, and what a run that dies the moment after must have said."""
log = logging.getLogger(__name__)


def open_channel(address: str) -> grpc.Channel:
    """A channel to the gateway: with TLS when the node's environment names the authority that signed its certificate.

    TUNESMITH_TLS_CA, and where the gateway asks for a certificate of the node's own TUNESMITH_TLS_CERT and TUNESMITH_TLS_KEY,
    are paths of PEM files on the node. Raises TrainingFailed when one can't be read.
    """
    options = [("grpc.max_reconnect_backoff_ms", 3000)]
    authority, chain, key = (_pem(f"TUNESMITH_TLS_{name}") for name in ("CA", "CERT", "KEY"))
    if authority is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, chain), options=options)


def _pem(variable: str) -> bytes | None:
    path = os.environ.get(variable)
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise TrainingFailed("tls_unusable", f"{variable} on this node names a file that can't be read: {error}", "config") from error


class Reporter(Protocol):
    """What the loop and its neighbours tell."""

    stage: str
    """What the run is doing, in words."""

    def tell(self, report: pb.RunReport) -> None:
        """Something happened; `report` has no number yet."""
        ...

    def directive(self) -> int:
        """What the run should do: a value of pb.Directive. Asked at every step, so it must be cheap."""
        ...

    def deliver(self) -> None:
        """Wait until the gateway has everything. Raises Stopped when this run is over."""
        ...


def last_word(failed: TrainingFailed, *, rank: int = 0, trace: str = "", redact: Callable[[str], str] = str) -> pb.RunReport:
    """What the gateway is told of a failure; `rank` raised it, unless the failure knows better."""
    place = rank if failed.rank is None else failed.rank
    words = {"code": failed.code, "cause": failed.cause, "hint": failed.hint, "node": failed.node}
    told = pb.Failed(**words, message=redact(failed.message), rank=place, traceback=redact(trace), micro_batch=failed.micro_batch or 0)
    return pb.RunReport(failed=told)


class Silent:
    """For ranks other than 0 and for runs without a gateway."""

    def __init__(self) -> None:
        self.stage = ""

    def tell(self, report: pb.RunReport) -> None:
        """Nobody listens."""

    def directive(self) -> int:
        """Go on."""
        return pb.DIRECTIVE_CONTINUE

    def deliver(self) -> None:
        """Nothing waits."""


class GatewayReporter:
    """Reports of one run; `close` ends its thread."""

    def __init__(self, address: str, token: str, job_id: str, epoch: int, *, last_seq: int = 0) -> None:
        self.stage = "starting"
        self._job_id, self._epoch, self._token = job_id, epoch, token
        self._channel = open_channel(address)
        self._stub = RunsStub(self._channel)
        self._waiting: deque[pb.RunReport] = deque()
        self._seq = last_seq
        self._directive = int(pb.DIRECTIVE_CONTINUE)
        self._over = ""
        self._lock = threading.Condition()
        self._closing = self._hurry = False
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def tell(self, report: pb.RunReport) -> None:
        """See Reporter."""
        with self._lock:
            self._seq += 1
            report.seq = self._seq
            self._waiting.append(report)
            if report.WhichOneof("body") in AT_ONCE:
                self._hurry = True
                self._lock.notify_all()

    def directive(self) -> int:
        """See Reporter; DIRECTIVE_STOP once the gateway has said that this run is over."""
        return int(pb.DIRECTIVE_STOP) if self._over else self._directive

    def deliver(self) -> None:
        """See Reporter. Waits at most PATIENCE_SECONDS; raises TrainingFailed after that."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._lock:
            while self._waiting and not self._over:
                if time.monotonic() > deadline:
                    raise TrainingFailed("gateway_unreachable", "the gateway was away for too long", "infrastructure")
                self._lock.wait(1.0)
        if self._over:
            raise Stopped(self._over)

    def close(self) -> None:
        """Stop sending; what waits is lost."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._thread.join(CALL_SECONDS + 1)
        self._channel.close()

    def _run(self) -> None:
        pause = 0.0
        while not self._closing and not self._over:
            with self._lock:
                # News is sent at the next beat, not at once: a fast loop makes many reports a second.
                self._lock.wait_for(lambda: self._closing or self._hurry, timeout=pause)
                self._hurry = False
                batch = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
            pause = self._send(batch)

    def _send(self, batch: list[pb.RunReport]) -> float:
        """One call; the seconds to wait before the next."""
        request = pb.ReportRequest(job_id=self._job_id, epoch=self._epoch, reports=batch, stage=self.stage)
        try:
            answer = self._stub.Report(request, timeout=CALL_SECONDS, metadata=[("authorization", f"Bearer {self._token}")])
        except grpc.RpcError as error:
            return self._refused(error)
        with self._lock:
            while self._waiting and self._waiting[0].seq <= answer.acknowledged:
                self._waiting.popleft()
            self._directive = answer.directive
            self._lock.notify_all()
            return 0.0 if len(self._waiting) >= BATCH else HEARTBEAT_SECONDS

    def _refused(self, error: grpc.RpcError) -> float:
        code, words = error.code(), error.details()  # type: ignore[attr-defined]  (every RpcError of a call has them)
        if code in OVER:
            log.warning("the gateway says that this run is over: %s", words)
            with self._lock:
                self._over = words or str(code)
                self._lock.notify_all()
        else:
            log.warning("report not delivered (%s: %s); it waits", code, words)
        return HEARTBEAT_SECONDS


def acknowledged(address: str, token: str, job_id: str, epoch: int) -> int:
    """Number of the last report of this run that the gateway has. Waits for the gateway; raises Stopped when the run is over."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with open_channel(address) as channel:
        while True:
            try:
                request = pb.ReportRequest(job_id=job_id, epoch=epoch, stage="ending")
                metadata = [("authorization", f"Bearer {token}")]
                return RunsStub(channel).Report(request, timeout=CALL_SECONDS, metadata=metadata).acknowledged
            except grpc.RpcError as error:
                if error.code() in OVER or time.monotonic() > deadline:  # type: ignore[attr-defined]
                    raise Stopped(str(error)) from error
                time.sleep(HEARTBEAT_SECONDS)
