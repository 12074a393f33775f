"""The errors that cross layers. No transport words: REST and gRPC each map `ErrorCode` in one table."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum


class ErrorCode(StrEnum):
    """Why a request was refused."""

    INVALID_REQUEST = "invalid_request"
    UNAUTHENTICATED = "invalid_api_key"
    PERMISSION_DENIED = "permission_denied"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RATE_LIMITED = "rate_limit_exceeded"
    QUOTA_EXCEEDED = "quota_exceeded"
    STALE = "stale"
    STORAGE_FULL = "storage_full"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class TunesmithError(Exception):
    """An error a user can act on: what is wrong, where, and what to do next.

    `param` names the request's field (dotted path), `wire_code` a more exact code for the client such
    as `invalid_training_file`, `retry_after` how long to wait before asking again.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        wire_code: str | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.wire_code = wire_code
        self.retry_after = retry_after


class RateExceeded(TunesmithError):
    """The project sends more than `limit` requests a minute; after `wait` there is room for the next one."""

    def __init__(self, limit: int, retry_after: timedelta) -> None:
        message = (
            f"The project's quota 'requests_per_minute' is used up: {limit} requests a minute. Ask again in {retry_after.seconds + 1} s."
        )
        super().__init__(ErrorCode.RATE_LIMITED, message, param="requests_per_minute", retry_after=retry_after)
        self.limit, self.wait = limit, retry_after


def invalid(message: str, param: str | None = None, wire_code: str | None = None) -> TunesmithError:
    """The request is wrong; asking again will not help."""
    return TunesmithError(ErrorCode.INVALID_REQUEST, message, param=param, wire_code=wire_code)


def not_found(kind: str, name: str, param: str | None = None) -> TunesmithError:
    """No such thing in the caller's project; says the same of another project's thing."""
    return TunesmithError(
        ErrorCode.NOT_FOUND, f"No such {kind}: '{name}'", param=param, wire_code=f"{kind.lower().replace(' ', '_')}_not_found"
    )
