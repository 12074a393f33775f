"""The service Files; see files.proto. How an upload's stream becomes parts is in `uploads`."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from protos.tunesmith.v1 import files_pb2 as pb
from protos.tunesmith.v1 import files_pb2_grpc
from service import names
from service.app import App
from service.errors import TunesmithError, invalid
from service.job_request import CHECK_FIELDS
from service.rpc import convert
from service.rpc.call import Call
from service.rpc.content import download
from service.rpc.uploads import received, upload_message
from service.settings import Settings

_PURPOSE = re.compile("[a-z_-]{1,32}")


class Files(files_pb2_grpc.FilesServicer):
    """Training data and result files."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def UploadFile(self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: Call) -> pb.UploadFileResponse:
        """See files.proto."""
        return await received(self._app, self._settings, request_iterator, context)

    async def GetUpload(self, request: pb.GetUploadRequest, context: Call) -> pb.GetUploadResponse:
        """See files.proto."""
        upload = await self._app.get_upload(context.caller, names.thing_id("upload", request.upload_id, "upload_id"))
        return upload_message(upload, await self._app.list_upload_parts(context.caller, upload.id))

    async def GetFile(self, request: pb.GetFileRequest, context: Call) -> pb.GetFileResponse:
        """See files.proto."""
        file = await self._app.get_file(context.caller, _file_id(request.file_id))
        return pb.GetFileResponse(file=convert.file_message(file))

    async def ListFiles(self, request: pb.ListFilesRequest, context: Call) -> pb.ListFilesResponse:
        """See files.proto."""
        limit = convert.limit_of(request, default=1000, most=10_000)
        after = names.cursor(request.after if request.HasField("after") else None)
        purpose = request.purpose if request.HasField("purpose") else None
        if purpose is not None and not _PURPOSE.fullmatch(purpose):
            raise invalid("'purpose' must be the purpose of a file, e.g. fine-tune.", "purpose")
        ascending = convert.is_ascending(request.order)
        page = await self._app.list_files(context.caller, purpose=purpose, after=after, limit=limit, ascending=ascending)
        files, more = convert.page(page, convert.file_message)
        return pb.ListFilesResponse(files=files, has_more=more)

    async def DeleteFile(self, request: pb.DeleteFileRequest, context: Call) -> pb.DeleteFileResponse:
        """See files.proto."""
        await self._app.delete_file(context.caller, _file_id(request.file_id))
        return pb.DeleteFileResponse()

    async def DownloadFile(self, request: pb.DownloadFileRequest, context: Call) -> AsyncGenerator[pb.DownloadFileResponse]:
        """See files.proto."""
        content = await self._app.file_content(context.caller, _file_id(request.file_id))
        async with aclosing(download(pb.DownloadFileResponse, content, request.offset)) as responses:
            async for response in responses:
                yield response

    async def ValidateDataset(self, request: pb.ValidateDatasetRequest, context: Call) -> pb.ValidateDatasetResponse:
        """See files.proto."""
        file_id, asked = _file_id(request.file_id), convert.check_of(request)
        try:
            report = await self._app.check_file(
                context.caller,
                file_id,
                model=asked.model,
                method=asked.method,
                training=asked.training,
                data=asked.data,
                param=asked.purpose,
                preview=asked.preview,
            )
        except TunesmithError as error:
            error.param = CHECK_FIELDS.get(error.param or "", error.param)
            raise
        return pb.ValidateDatasetResponse(report=convert.report_message(report))


def _file_id(text: str) -> str:
    return names.thing_id("file", text, "file_id")
