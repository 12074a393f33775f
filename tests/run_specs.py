"""RunSpecs for tests in which no training happens."""

from __future__ import annotations

from trainers.spec import BaseModelRef, DatasetRef, Resolved, ResourceSpec, RunSpec, TunesmithSpec


def run_spec(job_id: str = "ftjob-1", epoch: int = 1, storage_url: str = "file:///nowhere", cpus: int = 1) -> RunSpec:
    """A spec whose references lead nowhere."""
    return RunSpec(
        job_id=job_id,
        epoch=epoch,
        method="supervised",
        seed=1,
        base_model=BaseModelRef(id="m", revision="1", prefix="base/m/1", licence="mit"),
        dataset=DatasetRef(prefix="datasets/d", sha256="d", rows=32, tokens=900, trained_tokens=64, longest=40),
        validation=None,
        resolved=Resolved(n_epochs=1, batch_size=8, learning_rate_multiplier=1.0, learning_rate=1e-4, engine="torch", steps=4),
        tunesmith=TunesmithSpec(resources=ResourceSpec(cpus_per_worker=cpus)),
        storage_url=storage_url,
        report_address="127.0.0.1:1",
        tuned_model="ft:m:org::1",
    )
