"""``GET /model``: which model answers, and what it was made from."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from serving.routes.predict import NO_CANDIDATE
from serving.schemas import Error, ModelDescription
from serving.service import service_of

router = APIRouter(tags=["model"])


@router.get(
    "/model",
    summary="The model that answers",
    response_model=ModelDescription,
    responses={
        401: {"model": Error},
        **NO_CANDIDATE,
        503: {"model": Error, "description": "No model is loaded yet."},
    },
)
async def model(
    request: Request,
    candidate: Annotated[bool, Query(description="Describe the candidate, if the server has one.")] = False,
) -> dict[str, Any]:
    """Version, classes, metrics and lineage of the model."""
    return service_of(request).model(candidate).description
