"""Forms of requests and answers, as OpenAPI shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

MaskForm = Literal["rle", "polygons", "none"]

MAX_DETECTIONS = 500


def inlined_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a body that FastAPI does not read itself, without references to definitions."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(tree: Any) -> Any:
        if isinstance(tree, dict):
            reference = str(tree.get("$ref", "")).removeprefix("#/$defs/")
            return (
                resolved(definitions[reference]) if reference else {key: resolved(each) for key, each in tree.items()}
            )
        return [resolved(each) for each in tree] if isinstance(tree, list) else tree

    tree: dict[str, Any] = resolved(schema)
    return tree


class DetectionOptions(BaseModel):
    """Parameters that override the model's own detection settings."""

    model_config = ConfigDict(extra="forbid")

    score_threshold: float | None = Field(
        None,
        ge=0.001,
        lt=1,
        description="Only detections with a higher score. Default: the model's own.",
        examples=[0.3],
    )
    max_detections: int | None = Field(
        None, ge=1, le=MAX_DETECTIONS, description="The best ones of all classes. Default: the model's own."
    )
    nms: Literal["fast", "cross_class", "traditional"] | None = Field(
        None, description="How duplicates are suppressed. Default: the model's own."
    )
    classes: list[str] | None = Field(
        None, description="Of what is found, keep these classes only; repeatable. Default: all."
    )

    def changes(self) -> dict[str, Any]:
        """Fields of the detection settings to replace."""
        return self.model_dump(include={"score_threshold", "max_detections", "nms"}, exclude_none=True)


class PredictOptions(DetectionOptions):
    """Parameters of ``POST /predict``."""

    candidate: bool = Field(False, description="Ask the candidate instead of the model, if the server has one.")
    masks: MaskForm = Field(
        "rle",
        description="Masks as COCO run lengths (`rle`), as `polygons` (outlines; holes are filled), or `none`.",
    )


class OverlayOptions(DetectionOptions):
    """Parameters of ``POST /predict/overlay``."""

    score_threshold: float | None = Field(0.3, ge=0.001, lt=1, description="Draw detections with a higher score.")
    side: int = Field(
        1280, ge=64, le=2048, description="Longest side of the picture, pixels; larger images are reduced."
    )


class Rle(BaseModel):
    """COCO's compressed run lengths, for `pycocotools.mask.decode`."""

    size: tuple[int, int] = Field(description="Height and width: the image's, or less for very large images.")
    counts: str


class Detection(BaseModel):
    """An object."""

    model_config = ConfigDict(populate_by_name=True)

    class_name: str = Field(alias="class")
    class_id: int = Field(description="From 0, in the order of `GET /model`'s classes.")
    category_id: int = Field(description="COCO's category id of the class in the data that the model was trained on.")
    score: float = Field(ge=0, le=1)
    box: tuple[float, float, float, float] = Field(
        description="Left, top, right, bottom in pixels of the upright image."
    )
    mask: Rle | list[list[float]] | None = Field(
        None, description="Run lengths, or polygons as x, y, x, y, ... in pixels of the image, one for each part."
    )


class ImageResult(BaseModel):
    """Detections in an image."""

    name: str | None = Field(description="File name in a form, or the name given in JSON.")
    width: int = Field(description="Pixels of the image, turned upright as its EXIF orientation says.")
    height: int
    detections: list[Detection] = Field(description="Best score first.")


class ImageError(BaseModel):
    """An image that could not be used."""

    name: str | None
    error: str


class ModelVersion(BaseModel):
    """The model that answered."""

    name: str
    version: str | None
    alias: str | None


class Prediction(BaseModel):
    """Answer of ``POST /predict``: an entry for each image, in the order of the request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "yolact", "version": "3", "alias": "champion"},
                    "images": [
                        {
                            "name": "street.jpg",
                            "width": 640,
                            "height": 480,
                            "detections": [
                                {
                                    "class": "person",
                                    "class_id": 14,
                                    "category_id": 15,
                                    "score": 0.9321,
                                    "box": [101.5, 50.25, 180.0, 300.75],
                                    "mask": {"size": [480, 640], "counts": "Pnj02k>3M3N1O10000O1"},
                                }
                            ],
                        },
                        {"name": "notes.txt", "error": "it is not a JPEG, PNG, WebP, GIF or BMP image"},
                    ],
                }
            ]
        }
    )

    model: ModelVersion
    images: list[ImageResult | ImageError]


class JsonImage(BaseModel):
    """An image in JSON with its name."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(description="Base64 text, also with line breaks, or a data URL.")
    name: str | None = None


class JsonImages(BaseModel):
    """JSON body of ``POST /predict``."""

    model_config = ConfigDict(extra="forbid")

    images: list[str | JsonImage]


class ModelDescription(BaseModel):
    """Answer of ``GET /model``."""

    name: str
    version: str | None = Field(description="The registry's number, or the beginning of the SHA-256 of the weights.")
    alias: str | None
    classes: list[str]
    image_size: int = Field(description="Side of the network's input, pixels.")
    detection: dict[str, Any] = Field(description="The model's own detection settings.")
    device: str
    loaded: str = Field(description="ISO 8601, UTC.")
    metrics: dict[str, float] = Field(description="AP on the images that it was evaluated on, from the registry.")
    lineage: dict[str, dict[str, str]] = Field(
        description="Code, data, settings and run, from the registry; of a folder, the training's run."
    )


class FeedbackDetection(BaseModel):
    """A detection that the user saw, as `POST /predict` answered it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    class_name: str = Field(alias="class", min_length=1, max_length=200)
    class_id: int = Field(ge=0, lt=10_000, strict=True)
    category_id: int = Field(ge=0, lt=2**53, strict=True)
    score: float = Field(ge=0, le=1, strict=True)
    box: tuple[float, float, float, float]
    mask: Rle


class Feedback(BaseModel):
    """JSON body of ``POST /feedback``."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(description="Base64 text or a data URL.")
    model: ModelVersion
    detections: list[FeedbackDetection] = Field(max_length=MAX_DETECTIONS)
    wrong: list[StrictInt] | None = Field(
        None,
        description="Which of the detections are wrong, from 0; without it, the result as a whole is.",
        min_length=1,
    )


class Stored(BaseModel):
    """Answer of ``POST /feedback``."""

    id: str
    deleted_after_days: int


class Error(BaseModel):
    """Answer of a request that failed as a whole."""

    error: str
