"""What OpenAPI cannot derive from the routes: bodies that are not parsed by FastAPI, byte answers, the errors.

Called by the application factory; the constants are used by the routes.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.rest import wire

BODIES: tuple[type[BaseModel], ...] = tuple(shape for name, shape in vars(wire).items() if name.endswith("Request"))
"""Bodies: the routes read them by themselves, so that FastAPI does not know them."""
REF = "#/components/schemas/{model}"


def json_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """What a route says of its JSON body; `model` is one of BODIES."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": {"$ref": REF.format(model=model.__name__)}}}}}


def _multipart_body(required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": properties}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


DESCRIPTION = """
Fine-tune large language models on your own machines. The fine-tuning, files and models calls speak
OpenAI's wire format: the official `openai` client works with this server's `base_url`. What OpenAI has
no field for stands in one object named `tunesmith`, in requests and in answers.

Every error is OpenAI's error object, and every answer carries `x-request-id`.
"""
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": wire.ErrorResponse, "description": "The request is refused; `error` says why and where."},
    "5XX": {"model": wire.ErrorResponse, "description": "The server could not do it; with `retry-after` where asking again may help."},
}
BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, "description": "All bytes."},
    206: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, "description": "The range."},
    307: {"description": "The object store serves the bytes, at `location`."},
}
UPDATES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events until the job has ended."},
}
CURVES: dict[int | str, dict[str, Any]] = {
    200: {"model": wire.JobMetrics, "content": {"text/csv": {"schema": {"type": "string"}}}, "description": "The curves."},
}
LOG: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/plain": {"schema": {"type": "string"}}},
        "description": "The text.",
        "headers": {
            "x-tunesmith-attempt": {"description": "Number of the run.", "schema": {"type": "integer"}},
            "x-tunesmith-log": {"description": "Who wrote it: driver or rank-N.", "schema": {"type": "string"}},
            "x-tunesmith-logs": {"description": "All who wrote a log in this run until now.", "schema": {"type": "string"}},
        },
    },
}
CREATE_JOB_BODY: dict[str, Any] = {
    **json_body(wire.CreateFineTuningJobRequest),
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "Posting again under the same key gives the same job.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        }
    ],
}
UPLOAD_BODY: dict[str, Any] = {
    "requestBody": _multipart_body(
        ["file", "purpose"],
        {
            "file": {"type": "string", "format": "binary", "description": "JSON lines, a JSON array, CSV or Parquet."},
            "purpose": {"type": "string", "enum": ["fine-tune"], "description": "What it is for."},
            "expires_after[anchor]": {"type": "string", "enum": ["created_at"], "description": "Goes with the seconds."},
            "expires_after[seconds]": {
                "type": "integer",
                "minimum": 3600,
                "maximum": 2_592_000,
                "description": "After which the file goes by itself; never unless given.",
            },
        },
    )
}
PART_BODY: dict[str, Any] = {
    "requestBody": _multipart_body(["data"], {"data": {"type": "string", "format": "binary", "description": "Bytes of the file."}})
}


METADATA_PARAMETER: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "style": "deepObject",
            "explode": True,
            "description": "Only jobs whose metadata holds all these pairs: `metadata[key]=value`; `metadata=null`: only jobs without any.",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}


def document(api: FastAPI) -> dict[str, Any]:
    """The OpenAPI description of `api`, made once."""
    if api.openapi_schema is None:
        schema = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
        _errors_are_json(schema["paths"])
        for body in BODIES:
            request = body.model_json_schema(ref_template=REF)
            # The sections of `tunesmith` stand in answers too; the request's form of them knows their defaults.
            schema["components"]["schemas"] |= {**request.pop("$defs", {}), body.__name__: request}
        api.openapi_schema = schema
    return api.openapi_schema


def _errors_are_json(paths: dict[str, Any]) -> None:
    """FastAPI describes the refusals of a route in that route's own media type, which for a stream is not theirs."""
    for operations in paths.values():
        for operation in operations.values():
            for status in ERRORS.keys() & operation["responses"].keys():
                operation["responses"][status]["content"] = {"application/json": {"schema": {"$ref": REF.format(model="ErrorResponse")}}}
