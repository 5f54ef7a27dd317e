"""Make registered versions: without a network, from detections with a chosen recall for each class; or of a network."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from pycocotools import mask as coco_mask

from yolact.evaluation.evaluator import evaluate_coco, index_ground_truth
from yolact.settings import DetectConfig
from yolact_ops.registry.versions import DETECT_FILE, RegisteredModel
from yolact_ops.tracking.evaluations import FOLDER, pack_evaluation

IMAGES = 40
"""Number of images in each ground truth; each has one object of each class."""
SIDE = 64


def ground_truth(classes: list[str], *, shift: int = 0, first: int = 1) -> dict[str, Any]:
    """A COCO instances tree; ``shift`` (pixels) makes another data set, ``first`` (id) only renumbers."""
    annotations = []
    for image in range(1, IMAGES + 1):
        for category in range(1, len(classes) + 1):
            mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
            left = 4 + shift + 20 * (category - 1)
            mask[8:28, left : left + 16] = 1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + first - 1,
                    "category_id": category,
                    "bbox": [left, 8, 16, 20],
                    "area": 320,
                    "iscrowd": 0,
                    "segmentation": encode(mask),
                }
            )
    images = [
        {"id": k + first - 1, "file_name": f"{k}.jpg", "width": SIDE, "height": SIDE} for k in range(1, IMAGES + 1)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def encode(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def detections(tree: dict[str, Any], found: Mapping[str, int]) -> list[dict[str, Any]]:
    """Exact detections of each class's objects in the first ``found[class]`` images, none in the others."""
    first = tree["images"][0]["id"]
    name_of = {category["id"]: category["name"] for category in tree["categories"]}
    return [
        {key: item[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for item in tree["annotations"]
        if item["image_id"] - first < found[name_of[item["category_id"]]]
    ]


def add_version(
    client: MlflowClient,
    found: Mapping[str, int],
    *,
    name: str = "yolact",
    shift: int = 0,
    first: int = 1,
    data_digest: str = "data-1",
    detect_hash: str = "detect-1",
) -> int:
    """Register a version that detected each class in ``found[class]`` of the `IMAGES`, with its run and evaluation."""
    tree = ground_truth(list(found), shift=shift, first=first)
    rows = detections(tree, found)
    experiment = client.get_experiment_by_name("made by hand")
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment("made by hand"))
    summary = {
        f"{kind}_AP": repr(evaluate_coco(index_ground_truth(tree, "test"), rows, kind).AP) for kind in ("mask", "box")
    }
    with tempfile.TemporaryDirectory() as folder:
        for path, content in (
            ("val.json", tree),
            ("detections.json", rows),
            ("packed/artifacts/model/model.json", {"classes": list(found)}),
        ):
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_text(json.dumps(content))
        (Path(folder) / FOLDER).mkdir()
        pack_evaluation(Path(folder) / FOLDER, Path(folder) / "val.json", Path(folder) / "detections.json")
        client.log_artifacts(run.info.run_id, f"{folder}/{FOLDER}", FOLDER)
        client.log_artifacts(run.info.run_id, f"{folder}/packed", "packed")
    client.set_terminated(run.info.run_id)
    model = RegisteredModel.open_or_create(client, name)
    tags = summary | {"data_digest": data_digest, "detect_hash": detect_hash, "run_id": run.info.run_id}
    tags["model_digest"] = f"weights of {run.info.run_id}"
    source = f"{run.info.artifact_uri}/packed"
    version = client.create_model_version(name, source, run.info.run_id, tags=tags)
    model.set_alias("candidate", int(version.version))
    return int(version.version)


def add_model(client: MlflowClient, name: str, model_dir: Path, config: DetectConfig) -> int:
    """Register a version with a network and its detection settings, where the register step packs them."""
    experiment = client.get_experiment_by_name("networks")
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment("networks")).info
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(model_dir, f"{folder}/artifacts/model")
        (Path(folder) / "artifacts" / DETECT_FILE).write_text(config.model_dump_json())
        client.log_artifacts(run.run_id, folder, "packed")
    RegisteredModel.open_or_create(client, name)
    tags = {"model_digest": "m", "data_digest": "d", "detect_hash": "h"}
    version = client.create_model_version(name, f"{run.artifact_uri}/packed", run.run_id, tags=tags)
    return int(version.version)
