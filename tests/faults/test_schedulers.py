"""Rows 13 and 39: schedulers side by side, one of which is stopped or has a wrong clock. Two gateways need PostgreSQL."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.fake_run import until
from tests.faults.posting import ended, job_body, post, upload
from tests.faults.process import GatewayProcess, Site
from tests.faults.tcp_proxy import TcpProxy, tcp_proxy

HOUR = 3600


@pytest.fixture
def pair(new_site: Callable[..., Site], postgres_url: str) -> Iterator[tuple[Site, TcpProxy]]:
    """A site of two gateways to come, and the one address under which runs reach either."""
    with tcp_proxy() as front:
        yield new_site(postgres_url, TUNESMITH_REPORT_ADDRESS=front.address, FAULTS_STEP_SECONDS="0.1", FAULTS_CPUS="8"), front


def up(site: Site, front: TcpProxy, name: str, **environment: str) -> GatewayProcess:
    gateway = site.gateway(name).start(**environment)
    host, _, port = gateway.rpc_address.rpartition(":")
    front.targets.insert(0, (host, int(port)))
    return gateway


def owner(site: Site, job_id: str) -> str | None:
    return site.jobs()[job_id].lease_owner


def running(site: Site, job_id: str) -> str | None:
    job = site.jobs()[job_id]
    return job.lease_owner if job.status == "running" else None


def test_13_a_stopped_scheduler_steps_down_before_it_acts(pair: tuple[Site, TcpProxy]) -> None:
    site, front = pair
    first = up(site, front, "one")
    with first.http() as client:
        file = upload(client)
        job_id = post(client, job_body(file, epochs=12), "k")
    before = until("the run", lambda: running(site, job_id))
    second = up(site, front, "two")
    first.signal(signal.SIGSTOP)
    after = until("the takeover", lambda: (now := owner(site, job_id)) not in (before, None) and now)
    first.signal(signal.SIGCONT)
    until("the first to step down", lambda: "stepped_down" in first.log())
    assert owner(site, job_id) == after
    with first.http() as client:
        ended(client, job_id)
        another = post(client, job_body(file), "k2")
        ended(client, another)  # the one that was stopped is of use again
    assert site.started(job_id) == [f"{job_id}-1"]
    first.end()
    second.end()
    site.assert_sound([job_id, another])


def test_39_a_wrong_clock_takes_nothing_over(pair: tuple[Site, TcpProxy]) -> None:
    """Three gateways, of which one lives an hour ahead and one an hour behind: each keeps what it has claimed, and no more."""
    site, front = pair
    gateways = [
        up(site, front, "right"),
        *(up(site, front, name, FAULTS_CLOCK=f"{shift}") for name, shift in (("ahead", HOUR), ("behind", -HOUR))),
    ]
    owners: dict[str, str] = {}
    for gateway in gateways:
        with gateway.http() as client:
            file = upload(client)
            job_id = post(client, job_body(file, epochs=5), f"key of {gateway.data_dir.name}")
            owners[job_id] = until("the run", lambda job_id=job_id: running(site, job_id))
    leases = time.monotonic() + 3
    while time.monotonic() < leases:  # twice as long as a lease lasts
        held = {job_id: job.lease_owner for job_id, job in site.jobs().items() if job.status == "running"}
        assert held.items() <= owners.items()
        time.sleep(0.1)
    with gateways[0].http() as client:
        for job_id in owners:
            ended(client, job_id)
    assert all(site.started(job_id) == [f"{job_id}-1"] for job_id in owners)
    for gateway in gateways:
        gateway.end()
    site.assert_sound(list(owners))
