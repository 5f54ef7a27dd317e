"""``POST /feedback``: keep an image whose detections are wrong, for the next version of the data."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError

from serving.bodies import from_base64, media_type, parse_json, parsed_size, read_body
from serving.errors import ApiError, first_problem
from serving.feedback import FeedbackStore
from serving.images import Share, decode
from serving.routes.predict import FAILURES, TINY_IMAGE, deadline
from serving.schemas import Error, Feedback, Stored, inlined_schema
from serving.service import Service, service_of
from yolact.errors import DataError

router = APIRouter(tags=["feedback"])

_EXAMPLE = {
    "image": TINY_IMAGE,
    "model": {"name": "yolact", "version": "3", "alias": "champion"},
    "detections": [
        {
            "class": "dog",
            "class_id": 11,
            "category_id": 12,
            "score": 0.9,
            "box": [0, 0, 2, 1],
            "mask": {"size": [2, 2], "counts": "01100"},
        }
    ],
    "wrong": [0],
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": inlined_schema(Feedback),
                "examples": {"an object": {"summary": "The first detection is wrong", "value": _EXAMPLE}},
            }
        },
    },
}
_REFUSED: dict[int | str, dict[str, Any]] = {
    403: {"model": Error, "description": "The server stores no feedback."},
    507: {"model": Error, "description": "There is no space left for feedback."},
}


@router.post(
    "/feedback",
    summary="Report wrong detections",
    status_code=201,
    response_model=Stored,
    responses={**{status: FAILURES[status] for status in (400, 401, 408, 413, 415, 422, 429, 504)}, **_REFUSED},
    openapi_extra=_BODY,
)
async def feedback(request: Request) -> dict[str, Any]:
    """Store an image and what was found in it, if the operator has switched this on (`YOLACT_SERVE_FEEDBACK`)."""
    service = service_of(request)
    if service.feedback is None:
        raise ApiError(403, "this server stores no feedback; its operator can switch it on with YOLACT_SERVE_FEEDBACK")
    if media_type(request)[0] != "application/json":
        raise ApiError(415, "send application/json")
    store = service.feedback
    with service.share() as share:
        body = await read_body(request, service.settings, share, service.settings.max_report_bytes)
        share.add(parsed_size(body))
        async with deadline(service):
            name = await service.in_thread("parsing", lambda: _store(service, store, body, share))
    return {"id": name, "deleted_after_days": store.days}


def _store(service: Service, store: FeedbackStore, body: bytes, share: Share) -> str:
    report = _parse(body)
    try:
        image = decode(from_base64(report.image), service.settings.max_pixels, share)
    except (DataError, ValueError) as error:
        raise ApiError(422, f"image: {error}") from error
    return store.add(image, report)


def _parse(body: bytes) -> Feedback:
    try:
        report = Feedback.model_validate(parse_json(body))
    except ValidationError as error:
        raise ApiError(422, first_problem(error)) from error
    if report.wrong is not None and not all(0 <= number < len(report.detections) for number in report.wrong):
        raise ApiError(422, f"wrong: there are {len(report.detections)} detections, counted from 0")
    return report
