"""The reporter against a real gRPC server: order, repetition, absence of the gateway, and being told that the run is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from protos.tunesmith.v1 import runs_pb2 as pb
from protos.tunesmith.v1 import runs_pb2_grpc
from trainers import report
from trainers.failure import Stopped
from trainers.report import GatewayReporter, acknowledged


class Gateway(runs_pb2_grpc.RunsServicer):
    """Takes reports as the real one does: in order, each once; `losing` answers get lost after they took effect."""

    def __init__(self) -> None:
        self.reports: list[pb.RunReport] = []
        self.losing = 0
        self.refusal: grpc.StatusCode | None = None
        self.directive = pb.DIRECTIVE_CONTINUE
        self.tokens: set[str] = set()

    def Report(self, request: pb.ReportRequest, context: grpc.ServicerContext) -> pb.ReportResponse:
        self.tokens.add(dict(context.invocation_metadata())["authorization"])
        if self.refusal is not None:
            context.abort(self.refusal, "this run is over")
        for one in request.reports:
            if one.seq > len(self.reports):
                assert one.seq == len(self.reports) + 1
                self.reports.append(one)
        if request.reports and self.losing:
            self.losing -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer got lost")
        return pb.ReportResponse(acknowledged=len(self.reports), directive=self.directive)


@contextmanager
def served(gateway: Gateway, port: int = 0) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    runs_pb2_grpc.add_RunsServicer_to_server(gateway, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield bound
    finally:
        server.stop(0).wait()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "HEARTBEAT_SECONDS", 0.05)


def step(number: int) -> pb.RunReport:
    return pb.RunReport(step=pb.StepDone(step=number))


def test_reports_arrive_once_and_in_order_though_answers_get_lost() -> None:
    gateway = Gateway()
    gateway.losing = 3
    with served(gateway) as port:
        reporter = GatewayReporter(f"127.0.0.1:{port}", "secret", "ftjob-1", 1)
        for number in range(600):
            reporter.tell(step(number))
        reporter.deliver()
        reporter.close()
    assert [one.step.step for one in gateway.reports] == list(range(600))
    assert [one.seq for one in gateway.reports] == list(range(1, 601))
    assert gateway.tokens == {"Bearer secret"}


def test_training_goes_on_while_the_gateway_is_away() -> None:
    gateway = Gateway()
    with served(gateway) as port:
        reporter = GatewayReporter(f"127.0.0.1:{port}", "t", "ftjob-1", 1)
        reporter.tell(step(1))
        reporter.deliver()
    began = time.monotonic()
    reporter.tell(step(2))
    assert reporter.directive() == pb.DIRECTIVE_CONTINUE
    assert time.monotonic() - began < 1
    delivered = threading.Thread(target=reporter.deliver)
    delivered.start()
    with served(gateway, port):
        delivered.join(20)
        assert not delivered.is_alive()
        reporter.close()
    assert [one.step.step for one in gateway.reports] == [1, 2]


def test_a_directive_reaches_the_loop() -> None:
    gateway = Gateway()
    gateway.directive = pb.DIRECTIVE_STOP
    with served(gateway) as port:
        reporter = GatewayReporter(f"127.0.0.1:{port}", "t", "ftjob-1", 1)
        reporter.tell(step(1))
        reporter.deliver()
        assert reporter.directive() == pb.DIRECTIVE_STOP
        reporter.close()


@pytest.mark.parametrize("code", [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAUTHENTICATED])
def test_a_run_that_is_over_is_told_so(code: grpc.StatusCode) -> None:
    gateway = Gateway()
    gateway.refusal = code
    with served(gateway) as port:
        reporter = GatewayReporter(f"127.0.0.1:{port}", "t", "ftjob-1", 1)
        reporter.tell(step(1))
        with pytest.raises(Stopped, match="over"):
            reporter.deliver()
        assert reporter.directive() == pb.DIRECTIVE_STOP
        reporter.close()
        with pytest.raises(Stopped):
            acknowledged(f"127.0.0.1:{port}", "t", "ftjob-1", 1)


def test_the_driver_goes_on_with_the_numbers() -> None:
    gateway = Gateway()
    with served(gateway) as port:
        address = f"127.0.0.1:{port}"
        first = GatewayReporter(address, "t", "ftjob-1", 1)
        first.tell(step(1))
        first.deliver()
        first.close()
        last = acknowledged(address, "t", "ftjob-1", 1)
        second = GatewayReporter(address, "t", "ftjob-1", 1, last_seq=last)
        second.tell(pb.RunReport(failed=pb.Failed(code="x")))
        second.deliver()
        second.close()
    assert [one.seq for one in gateway.reports] == [1, 2]
