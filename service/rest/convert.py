"""From jobs, files, models and gradings to their wire shapes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from service.estimate import Estimate
from service.job_request import job_spec as job_spec
from service.jobs import Attempt, Event, Job, JobError, JobSpec, JobStatus
from service.records import Artifact, Checkpoint, File, Model, Page, Permission, Upload, UploadPart
from service.rest import wire
from service.rest.values import ends, seconds
from service.strict import finite
from trainers.graders.outcome import Outcome
from trainers.graders.spec import Grader

STATUS: dict[JobStatus, str] = {
    JobStatus.VALIDATING: "validating_files",
    JobStatus.QUEUED: "queued",
    JobStatus.STARTING: "queued",
    JobStatus.RUNNING: "running",
    JobStatus.PAUSING: "running",
    JobStatus.CANCELLING: "running",
    JobStatus.PAUSED: "paused",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}
"""OpenAI's word for each phase."""


def job_object(job: Job, now: float) -> wire.FineTuningJob:
    """A job as OpenAI shows it. `now` (seconds since 1970) dates the estimate of its end."""
    hyperparameters = _hyperparameters(job)
    return wire.FineTuningJob(
        id=job.id,
        created_at=int(job.created_at),
        finished_at=seconds(job.finished_at),
        estimated_finish=_estimated_finish(job, now),
        status=STATUS[job.status],
        model=job.spec.model,
        fine_tuned_model=job.tuned_model if job.status is JobStatus.SUCCEEDED else None,
        organization_id=job.organization_id,
        training_file=job.spec.training_file,
        validation_file=job.spec.validation_file,
        result_files=list(job.result_files),
        trained_tokens=job.trained_tokens,
        seed=job.spec.seed or 0,
        error=wire.JobErrorObject(code=job.error.code, message=job.error.message, param=job.error.param) if job.error else None,
        hyperparameters=hyperparameters,
        method={"type": job.spec.method.type, job.spec.method.type: wire.MethodBlock(hyperparameters=hyperparameters)},
        integrations=job.spec.integrations,
        metadata=job.spec.metadata or None,
        user_provided_suffix=job.spec.suffix,
        tunesmith=tunesmith_object(job),
    )


def tunesmith_object(job: Job) -> wire.TunesmithJob:
    """Our part of a job."""
    spec = job.spec.tunesmith
    return wire.TunesmithJob(
        phase=job.status,
        reason=job.reason,
        epoch=job.epoch,
        infra_failures=job.infra_failures,
        queued_at=seconds(job.queued_at),
        started_at=seconds(job.started_at),
        progress=job.progress,
        data=spec.data,
        queue_position=job.queue_position,
        jobs_ahead=None if job.queue_position is None else job.queue_position - 1,
        attempts=[_attempt(attempt) for attempt in job.attempts],
        adapter=spec.adapter,
        training=spec.training,
        checkpoints=spec.checkpoints,
        evaluation=spec.evaluation,
        resources=spec.resources,
        priority=spec.priority,
        resolved=job.resolved,
        error=_failure(job.error) if job.error else None,
    )


def _failure(error: JobError) -> wire.JobFailure:
    values: dict[str, Any] = {name: getattr(error, name) for name in wire.JobFailure.model_fields}
    values["details"] = finite(error.details)
    return wire.JobFailure(**values)


def _attempt(attempt: Attempt) -> wire.JobAttempt:
    values: dict[str, Any] = {name: getattr(attempt, name) for name in wire.JobAttempt.model_fields}
    values |= {"started_at": int(attempt.started_at), "ended_at": seconds(attempt.ended_at), "log_tail": list(attempt.log_tail)}
    return wire.JobAttempt(**values)


def _hyperparameters(job: Job) -> wire.HyperparametersObject:
    source = job.resolved or job.spec.method.hyperparameters
    return wire.HyperparametersObject(
        n_epochs=source.n_epochs, batch_size=source.batch_size, learning_rate_multiplier=source.learning_rate_multiplier
    )


def _estimated_finish(job: Job, now: float) -> int | None:
    eta = job.progress.eta_seconds
    return int(now + eta) if job.status is JobStatus.RUNNING and eta is not None else None


def estimate_object(spec: JobSpec, estimate: Estimate) -> wire.JobEstimate:
    """An estimate, with what it is of."""
    about = {"model": spec.model, "training_file": spec.training_file, "validation_file": spec.validation_file}
    values: dict[str, Any] = {name: getattr(estimate, name) for name in Estimate.model_fields}
    return wire.JobEstimate(method=spec.method.type, **about, **values)


def event_object(event: Event) -> wire.FineTuningJobEvent:
    """One line of a job's history."""
    return wire.FineTuningJobEvent(
        id=event.id,
        created_at=int(event.created_at),
        level=event.level,
        message=event.message,
        type=event.type,
        data=finite(event.data),
    )


def checkpoint_object(checkpoint: Checkpoint) -> wire.FineTuningJobCheckpoint:
    """A checkpoint with those of its metrics that OpenAI has a name for."""
    metrics = {name: value for name, value in finite(checkpoint.metrics).items() if name in wire.CheckpointMetrics.model_fields}
    return wire.FineTuningJobCheckpoint(
        id=checkpoint.id,
        created_at=int(checkpoint.created_at),
        fine_tuned_model_checkpoint=checkpoint.model_name,
        fine_tuning_job_id=checkpoint.job_id,
        step_number=checkpoint.step,
        metrics=wire.CheckpointMetrics(**{**metrics, "step": checkpoint.step}),
    )


def file_object(file: File) -> wire.FileObject:
    """A file's facts."""
    return wire.FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
        status=file.status,
        expires_at=seconds(file.expires_at),
    )


def upload_object(upload: Upload) -> wire.UploadObject:
    """An upload's facts, with the file that it has become."""
    return wire.UploadObject(
        id=upload.id,
        bytes=upload.bytes,
        created_at=int(upload.created_at),
        expires_at=int(upload.expires_at),
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.status,
        file=file_object(upload.file) if upload.file else None,
        tunesmith=wire.TunesmithUpload(mime_type=upload.mime_type, part_count=upload.part_count, received_bytes=upload.received_bytes),
    )


def upload_part_object(part: UploadPart) -> wire.UploadPartObject:
    """A part's facts."""
    ours = wire.TunesmithPart(bytes=part.bytes, sha256=part.sha256)
    return wire.UploadPartObject(id=part.id, created_at=int(part.created_at), upload_id=part.upload_id, tunesmith=ours)


def upload_part_list(parts: Sequence[UploadPart]) -> wire.UploadPartList:
    """All parts of an upload: there is no further page."""
    return wire.UploadPartList(data=[upload_part_object(part) for part in parts], has_more=False, **ends(parts))


def model_object(model: Model) -> wire.ModelObject:
    """A base or tuned model."""
    base = model.base
    return wire.ModelObject(
        id=model.id,
        created=int(model.created_at),
        owned_by=model.owned_by,
        tunesmith=wire.TunesmithModel(
            job_id=model.job_id,
            base_model=base.id if base else None,
            revision=base.revision if base else None,
            licence=base.licence if base else None,
        ),
    )


def artifact_object(artifact: Artifact) -> wire.ArtifactObject:
    """A published file's facts."""
    return wire.ArtifactObject(name=artifact.name, bytes=artifact.bytes, sha256=artifact.sha256)


def file_list(page: Page[File]) -> wire.FileList:
    """A page of files."""
    return wire.FileList(data=[file_object(file) for file in page.items], has_more=page.has_more, **ends(page.items))


def checkpoint_list(page: Page[Checkpoint]) -> wire.CheckpointList:
    """A page of checkpoints."""
    return wire.CheckpointList(data=[checkpoint_object(item) for item in page.items], has_more=page.has_more, **ends(page.items))


def permission_list(permissions: Sequence[Permission], *, has_more: bool) -> wire.PermissionList:
    """Permissions of one model."""
    data = [wire.PermissionObject(id=p.id, created_at=int(p.created_at), project_id=p.project_id) for p in permissions]
    return wire.PermissionList(data=data, has_more=has_more, **ends(permissions))


def grader_run(grader: Grader, outcome: Outcome) -> wire.GraderRun:
    """A grading as OpenAI shows it."""
    scores = dict(outcome.sub_rewards)
    metadata = wire.GraderRunMetadata(
        name=grader.name or grader.type,
        type=grader.type,
        errors=wire.GraderErrors.model_validate(asdict(outcome.errors)),
        execution_time=outcome.execution_time,
        scores=scores,
        sampled_model_name=outcome.models[0] if len(outcome.models) == 1 else None,
        token_usage=sum(outcome.usage.values()) if outcome.usage else None,
    )
    return wire.GraderRun(
        reward=outcome.reward, sub_rewards=scores, metadata=metadata, model_grader_token_usage_per_model=dict(outcome.usage)
    )
