"""Estimates and checks: what a job would take and what is wrong with a file, before anything is created."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from service import devices
from service.app.context import available, found, require
from service.app.jobs import JobUses, check_files, check_resources
from service.data_report import DataReport, Param
from service.devices import Device
from service.errors import ErrorCode, TunesmithError, invalid
from service.estimate import CountedData, Estimate
from service.estimating import Known, estimate
from service.file_checks import Checked, Question
from service.jobs import JobSpec, MethodSpec
from service.records import Caller, File
from service.runtime import Capacity, RuntimeUnavailable
from service.validation import NOT_SHARED, SHARED_BY
from trainers.manifest import ManifestBroken
from trainers.model_files import measure
from trainers.plan import unshareable
from trainers.spec import BaseModelRef, DatasetRef, DataSpec, TrainingSpec, TunesmithSpec

Checks = tuple[Checked, Checked | None]
READ_AS_IT_IS = DataSpec()
"""The format that the bytes tell, and no mapping."""


class EstimateUses(JobUses):
    """What a caller can learn without creating anything."""

    async def estimate_job(self, caller: Caller, spec: JobSpec, counted: CountedData | None = None) -> Estimate:
        """What the job would take: nothing is created, and the tokenised data is kept for the job that follows.

        Faulty data gives its reports and no numbers. `counted` stands in for files that are not here. Raises RATE_LIMITED
        when too many files are being checked.
        """
        require(caller, "write")
        async with available(), _base_model_whole():
            base_model = await self._base_model(spec)
            check_resources(spec)
            async with self.store.read() as tx:
                project = found(await tx.project(caller.organization_id, caller.project_id), "project", caller.project_id)
            spec = self.with_priority(project, spec)
            if counted is not None:
                validation = counted.validation.dataset() if counted.validation else None
                return await self._estimate(spec, base_model, (counted.training.dataset(), validation), (None, None))
            training, validation = await self._checked_files(caller, spec, base_model)
            reports = (training.report, validation.report if validation else None)
            if training.dataset is None or (validation is not None and validation.dataset is None):
                return Estimate(ok=False, training=reports[0], validation=reports[1])
            return await self._estimate(spec, base_model, (training.dataset, validation.dataset if validation else None), reports)

    async def check_file(
        self,
        caller: Caller,
        file_id: str,
        *,
        model: str,
        method: str,
        training: TrainingSpec,
        data: DataSpec = READ_AS_IT_IS,
        param: Param = "training_file",
        preview: int = 0,
    ) -> DataReport:
        """The data check's whole report of a file, for this base model and method; `preview` rows are shown as the model sees them."""
        require(caller, "write")
        spec = JobSpec(
            model=model, training_file=file_id, method=MethodSpec(type=method), tunesmith=TunesmithSpec(training=training, data=data)
        )
        async with available(), _base_model_whole():
            async with self.store.read() as tx:
                file = found(await tx.file(caller.project_id, file_id), "file", file_id, "file_id")
                await check_files(tx, caller, spec)
            question = Question(param, file_id, await self._base_model(spec), method, training, data, preview)
            return (await self._checked(question, file)).report

    async def _checked_files(self, caller: Caller, spec: JobSpec, base_model: BaseModelRef) -> Checks:
        async with self.store.read() as tx:
            await check_files(tx, caller, spec)
            training = await tx.file(caller.project_id, spec.training_file)
            validation = await tx.file(caller.project_id, spec.validation_file) if spec.validation_file else None
        asked = (base_model, spec.method.type, spec.tunesmith.training, spec.tunesmith.data)
        first = await self._checked(Question("training_file", spec.training_file, *asked), training)
        if spec.validation_file is None:
            return first, None
        return first, await self._checked(Question("validation_file", spec.validation_file, *asked), validation)

    async def _checked(self, question: Question, file: File | None) -> Checked:
        checked = await self.checks.check(question, file, self.checks.slots.take)
        if checked.report.retryable:
            raise TunesmithError(ErrorCode.UNAVAILABLE, checked.report.summary, retry_after=timedelta(seconds=5))
        return checked

    async def _estimate(
        self,
        spec: JobSpec,
        base_model: BaseModelRef,
        data: tuple[DatasetRef, DatasetRef | None],
        reports: tuple[DataReport | None, DataReport | None],
    ) -> Estimate:
        model_dir = await self.checks.model_dir(base_model)
        known = await self._known(spec, base_model, model_dir, reports)
        longest = max(dataset.longest for dataset in data if dataset is not None)
        if why := unshareable(known.sizes.config, spec.tunesmith, longest):
            raise invalid(why, SHARED_BY, NOT_SHARED)
        return estimate(spec, *data, known, self.settings)

    async def _known(
        self, spec: JobSpec, base_model: BaseModelRef, model_dir: Path, reports: tuple[DataReport | None, DataReport | None]
    ) -> Known:
        on_gpu = spec.tunesmith.resources.gpus_per_worker > 0
        async with self.store.read() as tx:
            others = [*(await tx.holdings()).values(), *await tx.candidates()]
            runs = await tx.measured_runs(base_model, spec.method.type, on_gpu=on_gpu)
        capacity = await self._capacity()
        return Known(
            sizes=await asyncio.to_thread(measure, model_dir),
            capacity=capacity,
            node_memory=devices.node_memory(self.settings, capacity),
            others=tuple(other.resources for other in others),
            runs=tuple(runs),
            device=await asyncio.to_thread(self._device, on_gpu, capacity),
            reports=reports,
        )

    def _device(self, on_gpu: bool, capacity: Capacity | None) -> Device:
        if on_gpu:
            return devices.gpu(self.settings, capacity.gpu_types if capacity else ())
        return devices.processor(self.settings)

    async def _capacity(self) -> Capacity | None:
        try:
            return await self.runtime.capacity()
        except RuntimeUnavailable:
            return None  # an estimate of data and memory is worth having while the cluster starts


@asynccontextmanager
async def _base_model_whole() -> AsyncGenerator[None]:
    """A base model that was damaged in storage is told as such."""
    try:
        yield
    except ManifestBroken as error:
        raise invalid(str(error), "model", "base_model_damaged") from error
