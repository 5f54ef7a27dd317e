"""``/healthz``, ``/readyz`` and ``/metrics``: for Kubernetes and Prometheus, without a token."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.service import service_of

router = APIRouter(tags=["health"])

_UNREADY: dict[int | str, dict[str, Any]] = {503: {"description": "Not now; the answer says why."}}


@router.get("/healthz", summary="Whether the server works", responses=_UNREADY)
async def healthz(request: Request) -> JSONResponse:
    """200 unless the server must be started again."""
    sickness = service_of(request).sickness
    return JSONResponse({"healthy": sickness is None, "error": sickness}, 200 if sickness is None else 503)


@router.get("/readyz", summary="Whether requests are welcome", responses=_UNREADY)
async def readyz(request: Request) -> JSONResponse:
    """200 when a model is loaded and the server is not stopping.

    `offered`: a newer model that failed, and why; the old one answers meanwhile. `source_error`: why the registry does
    not say which model to serve.
    """
    service = service_of(request)
    details = {"ready": service.is_ready, "stopping": service.stopping, **service.following.status()}
    return JSONResponse(details, 200 if service.is_ready else 503)


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
def metrics(request: Request) -> Response:
    """The text format of Prometheus."""
    service = service_of(request)
    service.metrics.ready.set(service.is_ready)
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
