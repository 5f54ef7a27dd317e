"""The Open Inference Protocol, version 2, for KServe and its clients.

https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. Tensors may also be binary
(KServe's extension "binary tensor data", which its client uses by default): the JSON's length is in the header
``Inference-Header-Content-Length``, and the tensors' bytes follow it. Outputs are binary where the request says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from serving.bodies import Upload, from_base64, parse_json, parsed_size, read_body
from serving.errors import ApiError, first_problem
from serving.routes.predict import FAILURES, TINY_IMAGE, deadline
from serving.schemas import DetectionOptions, Error, inlined_schema
from serving.service import Outcome, Service, service_of

health = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
models = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

INPUT = "image"
LENGTH_HEADER = "Inference-Header-Content-Length"

INPUTS = [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]
OUTPUTS: list[dict[str, Any]] = [
    {"name": "num_detections", "datatype": "INT32", "shape": [-1]},
    {"name": "image_sizes", "datatype": "INT32", "shape": [-1, 2]},
    {"name": "boxes", "datatype": "FP32", "shape": [-1, 4]},
    {"name": "scores", "datatype": "FP32", "shape": [-1]},
    {"name": "class_ids", "datatype": "INT64", "shape": [-1]},
    {"name": "classes", "datatype": "BYTES", "shape": [-1]},
    {"name": "mask_sizes", "datatype": "INT32", "shape": [-1, 2]},
    {"name": "masks", "datatype": "BYTES", "shape": [-1]},
]
"""Of all images one after the other; ``num_detections`` says how many rows belong to each. ``masks`` are COCO's
compressed run lengths of ``mask_sizes`` (height, width)."""


NUMPY_TYPES = {"INT32": "<i4", "INT64": "<i8", "FP32": "<f4"}
"""Of binary outputs, by the protocol's names."""


class Tensor(BaseModel):
    """An input tensor."""

    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(max_length=4)
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class OutputParameters(BaseModel):
    """Parameters of an output that the client asks for."""

    model_config = ConfigDict(extra="ignore")

    binary_data: StrictBool | None = None
    """Whether it is binary; None for what ``binary_data_output`` of the request says."""


class WantedOutput(BaseModel):
    """An output that the client asks for."""

    model_config = ConfigDict(extra="ignore")

    name: str
    parameters: OutputParameters | None = None


class InferRequest(BaseModel):
    """Body of ``POST /v2/models/{name}/infer``."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    inputs: list[Tensor]
    outputs: list[WantedOutput] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class OutputTensor(BaseModel):
    """An output tensor; `OUTPUTS` lists them."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    """Missing if it is binary; then ``parameters`` has ``binary_data_size``."""
    parameters: dict[str, int] | None = None


class InferResponse(BaseModel):
    """Answer of ``POST /v2/models/{name}/infer``."""

    model_name: str
    model_version: str | None = None
    id: str | None = None
    outputs: list[OutputTensor]


_EXAMPLE = {
    "inputs": [{"name": INPUT, "shape": [1], "datatype": "BYTES", "data": [TINY_IMAGE]}],
    "parameters": {"score_threshold": 0.3},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": inlined_schema(InferRequest),
                "example": _EXAMPLE,
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

_ANSWER: dict[str, Any] = {
    "model": InferResponse,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        LENGTH_HEADER: {
            "description": "Bytes of the JSON before the binary outputs' own; without it, all is JSON.",
            "schema": {"type": "integer"},
        }
    },
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Error, "description": "There is no such model."}}


@health.get("/health/live", summary="Server live")
async def live() -> dict[str, bool]:
    """The server answers."""
    return {"live": True}


@health.get("/health/ready", summary="Server ready", responses={503: {"description": "Not ready."}})
async def ready(request: Request) -> JSONResponse:
    """As `/readyz`."""
    is_ready = service_of(request).is_ready
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@health.get("", summary="Server metadata")
async def server(request: Request) -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": "yolact", "version": request.app.version, "extensions": ["binary_tensor_data"]}


@health.get("/models/{name}/ready", summary="Model ready", responses={503: {"description": "Not ready."}, **_UNKNOWN})
async def model_ready(request: Request, name: str) -> JSONResponse:
    """Whether this model is loaded and the server is not stopping."""
    service = service_of(request)
    _check_name(service, name)
    return JSONResponse({"name": service.name, "ready": service.is_ready}, 200 if service.is_ready else 503)


@models.get("/models/{name}", summary="Model metadata", responses={401: FAILURES[401], 503: FAILURES[503], **_UNKNOWN})
async def metadata(request: Request, name: str) -> dict[str, Any]:
    """Inputs and outputs. `image` may also be UINT8 of (H, W, 3) or (N, H, W, 3)."""
    service = service_of(request)
    _check_name(service, name)
    version = service.model().offer.version
    versions = [version] if version else []
    return {
        "name": service.name,
        "versions": versions,
        "platform": "pytorch_yolact",
        "inputs": INPUTS,
        "outputs": OUTPUTS,
    }


@models.post(
    "/models/{name}/infer",
    summary="Inference",
    response_class=Response,
    responses={200: _ANSWER, **FAILURES, **_UNKNOWN},
    openapi_extra=_BODY,
)
async def infer(
    request: Request,
    name: str,
    length: Annotated[
        str | None,
        Header(alias=LENGTH_HEADER, description="Bytes of the JSON before the tensors' own; without it, all is JSON."),
    ] = None,
) -> Response:
    """Detect objects in images: `image` as BYTES (each an encoded image; in JSON as base64) or UINT8 RGB pixels.

    `parameters`: `score_threshold`, `max_detections`, `nms`, `classes`, and `binary_data_output` for binary outputs. An
    image that cannot be used fails the request.
    """
    service = service_of(request)
    _check_name(service, name)
    model = service.model()
    with service.share() as share:
        body = await read_body(request, service.settings, share)
        async with deadline(service):
            share.add(parsed_size(body))
            asked = await service.in_thread("parsing", lambda: _parse(body, length))
            options = _options(asked)
            wanted = _wanted(asked)
            limit = service.settings.max_images
            uploads = await service.in_thread("parsing", lambda: _uploads(asked, body, length, limit))
            with service.batcher.room_for(len(uploads)):
                outcomes = await service.detect(model, uploads, options, share)
                for number, outcome in enumerate(outcomes):
                    if outcome.error is not None:
                        raise ApiError(422, f"{INPUT}[{number}]: {outcome.error}")
                header, tensors = await service.in_thread(
                    "encoding", lambda: _encode(service.name, model.offer.version, asked.id, wanted, outcomes)
                )
    if not any(wanted.values()):
        return Response(header, media_type="application/json")
    return Response(header + tensors, headers={LENGTH_HEADER: str(len(header))}, media_type="application/octet-stream")


def _check_name(service: Service, name: str) -> None:
    if name != service.name:
        raise ApiError(404, f"there is no model {name!r}; this server has {service.name!r}")


def _parse(body: bytes, length: str | None) -> InferRequest:
    if length is not None and not (length.isdecimal() and len(length) < 12 and int(length) <= len(body)):
        raise ApiError(400, f"{LENGTH_HEADER} {length[:20]!r} is not a length within the body")
    tree = parse_json(body if length is None else body[: int(length)])
    try:
        return InferRequest.model_validate(tree)
    except ValidationError as error:
        raise ApiError(400, first_problem(error)) from error


def _options(asked: InferRequest) -> DetectionOptions:
    given = {key: value for key, value in asked.parameters.items() if key in DetectionOptions.model_fields}
    if isinstance(given.get("classes"), str):  # the protocol's parameters are single values
        given["classes"] = [given["classes"]]
    try:
        return DetectionOptions.model_validate(given)
    except ValidationError as error:
        raise ApiError(422, f"parameters.{first_problem(error)}") from error


def _wanted(asked: InferRequest) -> dict[str, bool]:
    """Names of the outputs to send, and whether each is binary.

    Raises:
        ApiError: there is no such output, or a parameter is no truth value.
    """
    binary = asked.parameters.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise ApiError(400, "parameters.binary_data_output: must be true or false")
    known = [output["name"] for output in OUTPUTS]
    if asked.outputs is None:
        return dict.fromkeys(known, binary)
    unknown = sorted({output.name for output in asked.outputs} - set(known))
    if unknown:
        raise ApiError(400, f"outputs: there is no {', '.join(unknown)[:200]}; there are: {', '.join(known)}")
    return {output.name: _is_binary(output, binary) for output in asked.outputs}


def _is_binary(output: WantedOutput, default: bool) -> bool:
    own = None if output.parameters is None else output.parameters.binary_data
    return default if own is None else own


def _uploads(asked: InferRequest, body: bytes, length: str | None, limit: int) -> list[Upload]:
    """The images of the one input, at most ``limit``.

    Raises:
        ApiError: the input is missing, its data does not fit its shape, or there are too many images.
    """
    if [each.name for each in asked.inputs] != [INPUT]:
        names = ", ".join(each.name[:50] for each in asked.inputs[:5]) or "none"
        raise ApiError(400, f"there must be one input, {INPUT!r}; found {names}")
    [tensor] = asked.inputs
    size = tensor.parameters.get("binary_data_size")
    binary = None
    if size is not None:
        rest = body[int(length) :] if length is not None else b""
        if not isinstance(size, int) or size != len(rest):
            raise ApiError(400, f"{INPUT}: binary_data_size is {size!r}, but {len(rest)} bytes follow the JSON")
        binary = rest
    elif tensor.data is None:
        raise ApiError(400, f"{INPUT}: there is no data")
    if tensor.datatype == "BYTES":
        _check_number(math.prod(tensor.shape), limit)
        every = _split(binary) if binary is not None else _flat(tensor.data or [])
        elements = list(islice(every, limit + 1))
        if len(elements) != math.prod(tensor.shape):
            found = len(elements) if len(elements) <= limit else f"more than {limit}"
            raise ApiError(400, f"{INPUT}: the shape is {tensor.shape}, but there are {found} elements")
        return [_encoded(element) for element in elements]
    if tensor.datatype == "UINT8":
        _check_number(tensor.shape[0] if len(tensor.shape) == 4 else 1, limit)
        return [Upload(None, pixels=each) for each in _pixels(tensor, binary)]
    raise ApiError(400, f"{INPUT}: datatype {tensor.datatype!r}; send BYTES (encoded images) or UINT8 (pixels)")


def _check_number(images: int, limit: int) -> None:
    if images > limit:
        raise ApiError(413, f"{images} images; a request may have at most {limit}")


def _flat(data: Sequence[Any]) -> Iterator[Any]:
    """The elements of lists in lists, however deep."""
    open_lists = [iter(data)]
    while open_lists:
        for each in open_lists[-1]:
            if isinstance(each, list):
                open_lists.append(iter(each))
                break
            yield each
        else:
            open_lists.pop()


def _split(data: bytes) -> Iterator[bytes]:
    """Elements of a binary BYTES tensor: each is preceded by its length, 4 bytes, little-endian."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data):
            raise ApiError(400, f"{INPUT}: the element at byte {at} is longer than the data")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _encoded(element: Any) -> Upload:
    """An encoded image: bytes, or base64 of them (as text, or as bytes from clients that encode text)."""
    if isinstance(element, bytes):
        try:
            return Upload(None, from_base64(element.decode("ascii")))
        except ValueError:
            return Upload(None, element)
    if not isinstance(element, str):
        return Upload(None, error=f"it must be base64 text; found {type(element).__name__}")
    try:
        return Upload(None, from_base64(element))
    except ValueError as error:
        return Upload(None, error=f"it is not base64: {error}")


def _pixels(tensor: Tensor, binary: bytes | None) -> np.ndarray:
    """(N, H, W, 3) uint8."""
    shape = [1, *tensor.shape] if len(tensor.shape) == 3 else tensor.shape
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise ApiError(400, f"{INPUT}: UINT8 pixels must be (H, W, 3) or (N, H, W, 3) RGB; the shape is {tensor.shape}")
    try:
        if binary is not None:
            return np.frombuffer(binary, np.uint8).reshape(shape)
        values = np.array(tensor.data)
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
            raise ApiError(400, f"{INPUT}: UINT8 must be whole numbers from 0 to 255")
        return values.astype(np.uint8).reshape(shape)
    except ValueError as error:
        raise ApiError(400, f"{INPUT}: the data does not fit the shape {tensor.shape}: {error}") from error


def _encode(
    name: str, version: str | None, request_id: str | None, wanted: Mapping[str, bool], outcomes: Sequence[Outcome]
) -> tuple[bytes, bytes]:
    """The answer's JSON, and the bytes of its binary outputs.

    Args:
        name, version: the model's.
        request_id: the client's.
        wanted: see `_wanted`.
        outcomes: of all images, without errors.
    """
    data: dict[str, list[Any]] = {output["name"]: [] for output in OUTPUTS}
    for outcome in outcomes:
        found, image = outcome.found, outcome.image
        assert found is not None
        assert image is not None
        rles = found.rles()
        data["num_detections"].append(len(found))
        data["image_sizes"] += image.shape[1:]
        data["boxes"] += found.boxes.flatten().tolist()
        data["scores"] += found.scores.tolist()
        data["class_ids"] += found.labels.tolist()
        data["classes"] += [found.class_names[label] for label in found.labels.tolist()]
        data["mask_sizes"] += [side for rle in rles for side in rle["size"]]
        data["masks"] += [rle["counts"] for rle in rles]
    outputs, tensors = [], []
    for output, values in zip(OUTPUTS, data.values(), strict=True):
        if output["name"] not in wanted:
            continue
        entry: dict[str, Any] = {
            "name": output["name"],
            "datatype": output["datatype"],
            "shape": [len(values) // math.prod(output["shape"][1:]), *output["shape"][1:]],
        }
        if wanted[output["name"]]:
            tensors.append(_to_bytes(output["datatype"], values))
            entry["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            entry["data"] = values
        outputs.append(entry)
    tree = {"model_name": name, "model_version": version, "id": request_id, "outputs": outputs}
    known = {key: value for key, value in tree.items() if value is not None}
    return _to_utf8(json.dumps(known, ensure_ascii=False, separators=(",", ":"))), b"".join(tensors)


def _to_bytes(datatype: str, values: Sequence[Any]) -> bytes:
    """A tensor's values, little-endian; the elements of BYTES as in `_split`."""
    if datatype == "BYTES":
        texts = [_to_utf8(value) for value in values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return np.array(values, NUMPY_TYPES[datatype]).tobytes()


def _to_utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
