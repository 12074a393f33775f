"""Shapes that every resource shares: errors, answers, pages."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ErrorObject(BaseModel):
    """What was wrong, in OpenAI's shape."""

    message: str = Field(description="What is wrong and what to do.")
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The faulty field, as a dotted path, or null.")
    code: str | None = Field(description="A code for programs, or null.")


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorObject


class Answer(BaseModel):
    """An answer is built by `convert` alone."""

    model_config = ConfigDict(frozen=True)


class List(Answer):
    """One page; the next one starts after the id of its last item."""

    object: Literal["list"] = "list"
    has_more: bool = Field(description="Whether there are older items (newer ones under order=asc).")


class CursorList(List):
    """A page that names its ends."""

    first_id: str | None
    last_id: str | None
