"""``POST /predict`` and ``POST /predict/overlay``."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from PIL import Image

from serving.bodies import Upload, find_uploads, is_image, media_type, parsed_size, read_body
from serving.errors import ApiError
from serving.images import MEDIA_TYPES, Share
from serving.models import ServedModel
from serving.results import to_rows
from serving.schemas import Error, JsonImages, MaskForm, OverlayOptions, Prediction, PredictOptions, inlined_schema
from serving.service import Outcome, Service, service_of

router = APIRouter(tags=["prediction"])

TINY_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR42mP8z8DAwMDAxMDAwMDAAAANHQEDasKb6QAAAABJRU5ErkJggg=="
)
"""A PNG of 2x2 pixels, for examples."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_IMAGES: dict[str, Any] = dict.fromkeys((*MEDIA_TYPES, "application/octet-stream"), _BINARY)
_EXAMPLES = {
    "base64": {"summary": "Base64 text", "value": {"images": [TINY_IMAGE]}},
    "data URL": {
        "summary": "A data URL with a name",
        "value": {"images": [{"name": "a.png", "data": f"data:image/png;base64,{TINY_IMAGE}"}]},
    },
}


def _body(**limits: int) -> dict[str, Any]:
    """The body of a request with images; ``limits`` of their number as JSON schema names them."""
    form = {
        "type": "object",
        "properties": {
            "images": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, **limits}
        },
        "required": ["images"],
    }
    tree = inlined_schema(JsonImages)
    tree["properties"]["images"] |= limits
    content = {
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": tree, "examples": _EXAMPLES},
        **_IMAGES,
    }
    return {"requestBody": {"required": True, "content": content}}


NO_CANDIDATE: dict[int | str, dict[str, Any]] = {
    404: {"model": Error, "description": "The server has no candidate."},
}

FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The body is not what its type says."},
    401: {"model": Error, "description": "The token is missing or wrong."},
    408: {"model": Error, "description": "The body arrived too slowly."},
    413: {"model": Error, "description": "The body is too large, or has too many images."},
    415: {"model": Error, "description": "The body's type is not accepted."},
    422: {"model": Error, "description": "A parameter is wrong, or no image could be used."},
    429: {"model": Error, "description": "Too many requests; the header Retry-After says when to try again."},
    503: {"model": Error, "description": "No model is loaded yet."},
    504: {"model": Error, "description": "The answer took too long."},
}


@router.post(
    "/predict",
    summary="Detect objects in images",
    responses={200: {"model": Prediction, "description": "An entry for each image."}, **NO_CANDIDATE, **FAILURES},
    response_class=Response,
    openapi_extra=_body(),
)
async def predict(request: Request, options: Annotated[PredictOptions, Query()]) -> Response:
    """Images as files of a form, as JSON, or one image as the body itself.

    An image that cannot be used has `error` in its entry, and the others their detections; if none can be used, the
    answer is 422.
    """
    service = service_of(request)
    model = service.model(options.candidate)
    with service.share() as share:
        body = await read_body(request, service.settings, share)
        async with deadline(service):
            uploads = await _uploads(service, request, body, share, service.settings.max_images)
            with service.batcher.room_for(len(uploads)):
                outcomes = await service.detect(model, uploads, options, share)
                check_any(outcomes)
                content = await service.in_thread("encoding", lambda: _encode(model, outcomes, options.masks))
    return Response(content, media_type="application/json")


@router.post(
    "/predict/overlay",
    summary="Draw the objects in an image",
    responses={200: {"content": {"image/png": {}}, "description": "The image with its objects."}, **FAILURES},
    response_class=Response,
    openapi_extra=_body(minItems=1, maxItems=1),
)
async def overlay(request: Request, options: Annotated[OverlayOptions, Query()]) -> Response:
    """One image, in any form of `POST /predict`, drawn as a PNG."""
    service = service_of(request)
    model = service.model()
    with service.share() as share:
        body = await read_body(request, service.settings, share)
        async with deadline(service):
            uploads = await _uploads(service, request, body, share, 1)
            if not uploads:
                raise ApiError(400, "there is no image in the request")
            with service.batcher.room_for(1):
                [outcome] = await service.detect(model, uploads, options, share, options.side)
                check_any([outcome])
                content = await service.in_thread("encoding", lambda: _draw(outcome))
    return Response(content, media_type="image/png")


async def _uploads(service: Service, request: Request, body: bytes, share: Share, limit: int) -> list[Upload]:
    """The images in a body, at most ``limit``."""
    kind, parameters = media_type(request)
    if is_image(kind):
        return find_uploads(body, kind, parameters, limit)  # nothing to parse, so no thread to wait for
    share.add(parsed_size(body))
    return await service.in_thread("parsing", lambda: find_uploads(body, kind, parameters, limit))


class deadline:  # noqa: N801  # reads like asyncio.timeout
    """End the block with 504 when the time of a request is over."""

    def __init__(self, service: Service) -> None:
        self._seconds = service.settings.timeout
        self._timeout = asyncio.timeout(self._seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise ApiError(504, f"there was no answer within {self._seconds:g} s") from None


def check_any(outcomes: Sequence[Outcome]) -> None:
    """Refuse a request none of whose images can be used.

    Raises:
        ApiError: 422, with the reason of each image, or of the first ones.
    """
    if not outcomes or any(outcome.error is None for outcome in outcomes):
        return
    errors = [
        f"image {number}{f' ({outcome.name})' if outcome.name else ''}: {outcome.error}"
        for number, outcome in enumerate(outcomes[:5], start=1)
    ]
    more = f"; and {len(outcomes) - 5} more" if len(outcomes) > 5 else ""
    raise ApiError(422, "; ".join(errors) + more)


def _encode(model: ServedModel, outcomes: Sequence[Outcome], masks: MaskForm) -> bytes:
    offer = model.offer
    images = [
        {"name": outcome.name, "error": outcome.error}
        if outcome.image is None or outcome.found is None
        else {
            "name": outcome.name,
            "width": outcome.image.shape[2],
            "height": outcome.image.shape[1],
            "detections": to_rows(outcome.found, masks),
        }
        for outcome in outcomes
    ]
    tree = {"model": {"name": offer.name, "version": offer.version, "alias": offer.alias}, "images": images}
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate in a name becomes JSON's escape again


def _draw(outcome: Outcome) -> bytes:
    assert outcome.image is not None
    assert outcome.found is not None
    picture: np.ndarray = outcome.found.plot(outcome.image)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
