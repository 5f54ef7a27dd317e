"""Answers other than 200: the exception that routes raise, and its form."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError


class ApiError(Exception):
    """The request ends with ``status`` and ``{"error": message}``."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints, with the place."""
    detail = error.errors(include_input=False)[0]
    return f"{'.'.join(map(str, detail['loc'])) or 'body'}: {detail['msg']}"


class OverloadedError(ApiError):
    """The queue or the memory for requests is full: 429, with the seconds after which a retry may succeed."""

    def __init__(self, what: str, retry_after: int) -> None:
        super().__init__(429, f"{what}; try again in {retry_after} s", {"Retry-After": str(retry_after)})
        self.reason = what
