"""The shapes on the wire: OpenAI's objects, and ours under the key `tunesmith`. One module for each resource.

Every field is described here once; OpenAPI shows it. Converters are in `convert`. Knows no HTTP.
"""

from service.rest.wire.artifacts import ArtifactList as ArtifactList
from service.rest.wire.artifacts import ArtifactObject as ArtifactObject
from service.rest.wire.files import FileDeleted as FileDeleted
from service.rest.wire.files import FileList as FileList
from service.rest.wire.files import FileObject as FileObject
from service.rest.wire.files import Purpose as Purpose
from service.rest.wire.jobs import CheckpointList as CheckpointList
from service.rest.wire.jobs import CheckpointMetrics as CheckpointMetrics
from service.rest.wire.jobs import CreateFineTuningJobRequest as CreateFineTuningJobRequest
from service.rest.wire.jobs import EventList as EventList
from service.rest.wire.jobs import FileId as FileId
from service.rest.wire.jobs import FineTuningJob as FineTuningJob
from service.rest.wire.jobs import FineTuningJobCheckpoint as FineTuningJobCheckpoint
from service.rest.wire.jobs import FineTuningJobEvent as FineTuningJobEvent
from service.rest.wire.jobs import HyperparametersObject as HyperparametersObject
from service.rest.wire.jobs import JobErrorObject as JobErrorObject
from service.rest.wire.jobs import JobFailure as JobFailure
from service.rest.wire.jobs import JobList as JobList
from service.rest.wire.jobs import Metadata as Metadata
from service.rest.wire.jobs import MethodBlock as MethodBlock
from service.rest.wire.jobs import MethodRequest as MethodRequest
from service.rest.wire.jobs import SupervisedMethod as SupervisedMethod
from service.rest.wire.jobs import TunesmithJob as TunesmithJob
from service.rest.wire.models import ModelDeleted as ModelDeleted
from service.rest.wire.models import ModelList as ModelList
from service.rest.wire.models import ModelObject as ModelObject
from service.rest.wire.models import TunesmithModel as TunesmithModel
from service.rest.wire.operation import Health as Health
from service.rest.wire.operation import Readiness as Readiness
from service.rest.wire.shared import Answer as Answer
from service.rest.wire.shared import CursorList as CursorList
from service.rest.wire.shared import ErrorObject as ErrorObject
from service.rest.wire.shared import ErrorResponse as ErrorResponse
from service.rest.wire.shared import List as List
