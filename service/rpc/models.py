"""The service Models; see models.proto."""

from __future__ import annotations

from protos.tunesmith.v1 import models_pb2 as pb
from protos.tunesmith.v1 import models_pb2_grpc
from service import names
from service.app import App
from service.rpc.call import Call
from service.rpc.convert import model_message


class Models(models_pb2_grpc.ModelsServicer):
    """Base models and tuned models."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def ListModels(self, request: pb.ListModelsRequest, context: Call) -> pb.ListModelsResponse:
        """See models.proto."""
        return pb.ListModelsResponse(models=[model_message(model) for model in await self._app.list_models(context.caller)])

    async def GetModel(self, request: pb.GetModelRequest, context: Call) -> pb.GetModelResponse:
        """See models.proto."""
        model = await self._app.get_model(context.caller, names.model_name(request.model))
        return pb.GetModelResponse(model=model_message(model))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Call) -> pb.DeleteModelResponse:
        """See models.proto."""
        await self._app.delete_model(context.caller, names.model_name(request.model))
        return pb.DeleteModelResponse()
