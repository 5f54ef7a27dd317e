"""Settings: what is accepted, and that each error names the file, the key and the fix."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolact.errors import SettingsError, YolactError
from yolact.losses.terms import LOSS_TERMS
from yolact.settings import DEFAULT_DETECTION
from yolact_ops.settings.params import load_params, parse_params


@pytest.fixture(scope="module")
def base_text(repository: Path) -> str:
    return (repository / "conf" / "base.yaml").read_text(encoding="utf-8")


@pytest.fixture
def tree(repository: Path) -> dict[str, Any]:
    """The base settings as a nested mapping that a test may change."""
    loaded = load_params(repository / "conf" / "base.yaml").model_dump(mode="python", by_alias=True)
    return copy.deepcopy(loaded)


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for part in above:
        tree = tree[part]
    tree[last] = value


def refusal(tree: Any, origin: str = "params.yaml") -> str:
    with pytest.raises(SettingsError) as caught:
        parse_params(tree, origin=origin)
    return str(caught.value)


def test_base_is_valid_and_holds_the_published_values(repository: Path) -> None:
    params = load_params(repository / "conf" / "base.yaml")
    assert (params.model.backbone, params.model.image_size) == ("resnet50", 550)
    assert (params.train.batch_size, params.train.lr, params.train.momentum, params.train.weight_decay) == (
        8,
        1e-3,
        0.9,
        5e-4,
    )
    loss = params.train.loss
    published = {"classification": 1.0, "box": 1.5, "mask": 6.125, "semantic": 1.0, "mask_iou": 25.0}
    assert {name: loss.weights[name] for name in published} == published
    assert loss.weights.keys() == LOSS_TERMS.keys()  # other terms can be added
    assert loss.mask_iou_min_area == 25
    assert params.model.anchor_scales == [[32], [64], [128], [256], [512]]
    assert params.model.anchors_per_cell == 3
    assert params.model.pretrained
    assert params.evaluate.detect == DEFAULT_DETECTION


def test_params_yaml_at_the_root_is_valid(repository: Path) -> None:
    load_params(repository / "params.yaml")


def test_every_error_of_settings_is_one_that_commands_print_without_a_traceback() -> None:
    assert issubclass(SettingsError, YolactError)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.learning_rates", 1, "train.learning_rates: unknown key; allowed here: seed, epochs, batch_size"),
        ("train.epoch", 1, "train.epoch: unknown key; did you mean 'epochs'?"),
        ("train.loss.wieghts", 1, "train.loss.wieghts: unknown key; did you mean 'weights'?"),
        ("evalute", {}, "evalute: unknown key; did you mean 'evaluate'?"),
        ("registr", {}, "registr: unknown key; did you mean 'register'?"),
        ("train.lr", "fast", "train.lr: input should be a valid number (found 'fast')"),
        ("train.lr", "0.001", "train.lr: input should be a valid number (found '0.001')"),
        ("train.lr", 0, "train.lr: input should be greater than 0 (found 0)"),
        ("train.lr", float("nan"), "train.lr: input should be a finite number (found nan)"),
        ("train.lr", float("inf"), "train.lr: input should be a finite number (found inf)"),
        ("train.epochs", 2.5, "train.epochs: must be auto, or a whole number of at least 1 (found 2.5)"),
        ("train.epochs", True, "train.epochs: must be auto, or a whole number of at least 1 (found True)"),
        ("train.epochs", 0, "train.epochs: must be auto, or a whole number of at least 1 (found 0)"),
        ("train.epochs", "few", "train.epochs: must be auto, or a whole number of at least 1 (found 'few')"),
        ("train.layer_decay", 0, "train.layer_decay: input should be greater than 0 (found 0)"),
        ("train.augment.scale_jitter", [2, 1], "train.augment.scale_jitter: must be empty, or the smallest and the"),
        ("train.augment.scale_jitter", [0.5], "train.augment.scale_jitter: must be empty, or the smallest and the"),
        (
            "train.augment.scale_jitter",
            [0.1, 2.0],
            "train.augment: scale_jitter takes the place of expand and random_crop: set both to false",
        ),
        ("train.augment.mosaic", 1.5, "train.augment.mosaic: input should be less than or equal to 1 (found 1.5)"),
        ("train.loss.assignment", "tal", "train.loss.assignment: input should be 'iou' or 'atss' (found 'tal')"),
        ("train.loss.mask_upsampling", 3, "train.loss.mask_upsampling: input should be 1 or 2 (found 3)"),
        ("train.momentum", 1.5, "train.momentum: input should be less than 1 (found 1.5)"),
        ("train.schedule", "linear", "train.schedule: input should be 'step' or 'cosine' (found 'linear')"),
        ("runtime.device", "gpu", "runtime.device: string should match pattern"),
        ("train.lr_milestones", [0.8, 0.5], "train.lr_milestones: fractions must be ascending and distinct"),
        ("train.lr_milestones", [0.5, 0.5], "train.lr_milestones: fractions must be ascending and distinct"),
        ("train.lr_milestones", [0.5, 60000], "train.lr_milestones.1: input should be less than or equal to 1"),
        ("train.augment.mirror", "yes", "train.augment.mirror: input should be a valid boolean (found 'yes')"),
        ("train.augment", None, "train.augment: input should be a valid dictionary"),
        ("train.loss.negative_iou", 0.6, "negative_iou (0.6) must not be larger than positive_iou (0.5)"),
        ("data.sample.min_size", 300, "min_size (300) must not be larger than max_size (256)"),
        ("data.source", "", "data.source: string should have at least 1 character"),
        *(
            ("data.classes", value, "data.classes: must be null (all), a list of different names, or a mapping from")
            for value in (3, "person", [], {}, ["dog", "dog"], ["dog", 3], [""], {"dog": ""}, {"dog": ["pet"]})
        ),
        *(
            ("data.annotations", value, "data.annotations: must be null (detect), a list of paths, or one each for")
            for value in (3, "", [], [""], [3], {}, {"val": ["a.json"]}, {"train": []}, {"train": "a", "vals": "b"})
        ),
        *(
            ("data.class_names", value, "data.class_names: must be null (from the files), voc, or a list of different")
            for value in (3, "VOC", [], ["dog", "dog"], ["dog", 3], [" "], {"dog": "pet"})
        ),
        ("data.max_side", 63, "data.max_side: must be 0 (never reduce) or at least 64 pixels (found 63)"),
        ("data.max_side", -1, "data.max_side: input should be greater than or equal to 0 (found -1)"),
        ("data.split.val", 0.0, "data.split.val: must be a share of the images above 0 and below 1, or paths of lists"),
        ("data.split.val", None, "data.split.val: must be a share of the images above 0 and below 1, or paths of"),
        ("data.split.test", 1.0, "data.split.test: must be none, a share of the images from 0 to below 1, or paths of"),
        ("data.split.test", True, "data.split.test: must be none, a share of the images from 0 to below 1, or paths"),
        ("data.split.train", [""], "data.split.train: must be null (as the source says), or paths of lists of images"),
        (
            "model.backbone",
            "resnet5",
            "model.backbone: must be one of resnet18, resnet34, resnet50, resnet101, darknet53, efficientnet_lite0",
        ),
        ("model.backbone_blocks", [3, 4, 6], "model: backbone_blocks must have 4 numbers for resnet50"),
        ("model.backbone_blocks", [], "model.backbone_blocks: list should have at least 1 item"),
        ("model.backbone_blocks", [0, 1, 1, 1], "model.backbone_blocks.0: input should be greater than or equal to 1"),
        (
            "model.deformable_blocks",
            [[], [0]],
            "deformable_blocks must be empty or have a list for each of the 4 stages",
        ),
        (
            "model.deformable_blocks",
            [[], [0], [6], [0]],
            "deformable_blocks: stage 2 has 6 blocks, 0 to 5, each to be named once; found [6]",
        ),
        ("model.deformable_blocks", [[0, 0], [], [], []], "stage 0 has 3 blocks, 0 to 2, each to be named once"),
        ("model.deformable_blocks", [[-1], [], [], []], "model.deformable_blocks.0.0: input should be greater than"),
        ("model.anchor_scales", [[32], [64]], "model.anchor_scales: list should have at least 5 items"),
        ("model.anchor_scales", [[8]] * 6, "model.anchor_scales: list should have at most 5 items"),
        ("model.anchor_scales", [[1], [2], [3], [4], [5, 6]], "every level needs the same number of scales"),
        ("model.anchor_scales", [[], [], [], [], []], "every level needs the same number of scales, at least one"),
        ("model.anchor_scales", [[1], [2], [3], [4], [-5]], "model.anchor_scales.4.0: input should be greater than 0"),
        ("model.anchor_ratios", [], "model.anchor_ratios: list should have at least 1 item"),
        ("evaluate.detect.nms", "soft", "evaluate.detect.nms: input should be 'fast', 'cross_class' or 'traditional'"),
        (
            "evaluate.detect.score_threshold",
            -0.1,
            "evaluate.detect.score_threshold: input should be greater than or equal to 0",
        ),
        ("register.model_name", "a/b", "register.model_name: string should match pattern"),
    ],
)
def test_an_invalid_setting_is_refused_with_its_key_and_what_is_allowed(
    tree: dict[str, Any], key: str, value: Any, expected: str
) -> None:
    put(tree, key, value)
    message = refusal(tree)
    assert message.startswith("params.yaml: ")
    assert expected in message


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "darknet53"])
def test_deformable_convolutions_need_bottlenecks(tree: dict[str, Any], backbone: str) -> None:
    tree["model"] |= {"backbone": backbone, "deformable_blocks": [[], [0], [0], [0]]}
    assert refusal(tree) == (
        f"params.yaml: model: deformable_blocks need one of the backbones resnet50, resnet101, not {backbone}"
    )
    tree["model"]["deformable_blocks"] = [[], [], [], []]  # none at all
    assert parse_params(tree).model.backbone == backbone


def test_a_backbone_of_other_depth_limits_the_deformable_blocks(tree: dict[str, Any]) -> None:
    tree["model"] |= {"backbone_blocks": [1, 1, 1, 1], "deformable_blocks": [[], [0], [0], [0]]}
    assert parse_params(tree).model.blocks == (1, 1, 1, 1)
    tree["model"]["deformable_blocks"] = [[], [0], [1], [0]]
    assert "stage 2 has 1 blocks, 0 to 0" in refusal(tree)


def test_mask_rescoring_needs_large_enough_prototypes(tree: dict[str, Any]) -> None:
    tree["model"] |= {"mask_rescoring": True, "image_size": 248}
    assert refusal(tree) == "params.yaml: model: mask_rescoring needs an image_size of at least 249"
    tree["model"]["image_size"] = 249
    assert parse_params(tree).model.mask_rescoring
    put(tree, "train.augment.image_sizes", [400, 248])
    assert refusal(tree).endswith(
        "train.augment.image_sizes: with model.mask_rescoring each must be at least 249, found 248"
    )
    put(tree, "train.augment.image_sizes", [400, 249])
    assert parse_params(tree).train.augment.image_sizes == [400, 249]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.augment.image_sizes", [550, 63], "train.augment.image_sizes.1: .*greater than or equal to 64"),
        ("train.sampling", "balanced", "train.sampling: .*'uniform' or 'class_balanced'"),
        ("train.repeat_threshold", 0.0, "train.repeat_threshold: .*greater than 0"),
    ],
)
def test_invalid_sampling_is_refused(tree: dict[str, Any], key: str, value: Any, said: str) -> None:
    put(tree, key, value)
    assert re.search(said, refusal(tree))


@pytest.mark.parametrize(
    ("backbone", "blocks"),
    [
        ("resnet18", (2, 2, 2, 2)),
        ("resnet34", (3, 4, 6, 3)),
        ("resnet50", (3, 4, 6, 3)),
        ("resnet101", (3, 4, 23, 3)),
        ("darknet53", (1, 2, 8, 8, 4)),
    ],
)
def test_backbones_have_the_depth_of_their_papers(tree: dict[str, Any], backbone: str, blocks: tuple[int, ...]) -> None:
    tree["model"]["backbone"] = backbone
    assert parse_params(tree).model.blocks == blocks


@pytest.mark.parametrize(
    ("backbone_weights", "initial_weights", "pretrained"),
    [("none", "none", False), ("imagenet", "none", True), ("none", "models", True), ("x.pth", "none", True)],
)
def test_weights_from_a_file_make_a_network_pretrained(
    tree: dict[str, Any], backbone_weights: str, initial_weights: str, pretrained: bool
) -> None:
    tree["model"] |= {"backbone_weights": backbone_weights, "initial_weights": initial_weights}
    assert parse_params(tree).model.pretrained == pretrained


@pytest.mark.parametrize(
    ("given", "read"),
    [("a.json", ["a.json"]), (["a", "b"], ["a", "b"]), ({"train": "a"}, {"train": ["a"]}), (None, None)],
)
def test_a_single_annotation_file_needs_no_list(tree: dict[str, Any], given: Any, read: Any) -> None:
    put(tree, "data.annotations", given)
    assert parse_params(tree).data.annotations == read


def test_single_settings_of_detection_can_be_replaced() -> None:
    changed = DEFAULT_DETECTION.replace(nms="traditional", score_threshold=0.3)
    assert (changed.nms, changed.score_threshold, changed.top_k) == ("traditional", 0.3, DEFAULT_DETECTION.top_k)
    assert DEFAULT_DETECTION.nms == "fast"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nms": "soft"}, "detection: nms: input should be 'fast', 'cross_class' or 'traditional' (found 'soft')"),
        ({"score_treshold": 0.3}, "detection: score_treshold: unknown key; did you mean 'score_threshold'?"),
        (
            {"top_k": 0, "nms_iou": 2},
            "detection: nms_iou: input should be less than or equal to 1 (found 2)\ndetection: ",
        ),
    ],
)
def test_an_invalid_replacement_is_refused_with_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        DEFAULT_DETECTION.replace(**changes)


@pytest.mark.parametrize("key", ["train.lr", "register", "train.loss.weights", "data.sample.seed"])
def test_a_missing_key_is_named(tree: dict[str, Any], key: str) -> None:
    *above, last = key.split(".")
    section = tree
    for part in above:
        section = section[part]
    del section[last]
    assert refusal(tree) == f"params.yaml: {key}: missing; conf/base.yaml has it with its published value"


def test_all_errors_are_reported_at_once_each_on_its_line(tree: dict[str, Any]) -> None:
    put(tree, "train.lr", "fast")
    put(tree, "model.bakbone", "resnet18")
    lines = refusal(tree, origin="x.yaml").splitlines()
    assert len(lines) == 2
    assert all(line.startswith("x.yaml: ") for line in lines)


@pytest.mark.parametrize("nothing", [None, [], "train", 3])
def test_settings_that_are_not_a_mapping_are_refused_with_the_sections_named(nothing: Any) -> None:
    assert refusal(nothing) == (
        "params.yaml: must be a mapping with the sections data, model, train, evaluate, runtime, register, promote"
    )


def test_a_missing_file_is_named_with_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no\.yaml: no such file.*yolact preset use"):
        load_params(tmp_path / "no.yaml")


@pytest.mark.parametrize("name", ["smoke", "voc2012-r101"])
def test_a_preset_instead_of_complete_settings_is_reported_once(repository: Path, name: str) -> None:
    path = repository / "conf" / f"{name}.yaml"
    with pytest.raises(SettingsError) as caught:
        load_params(path)
    assert str(caught.value).count("\n") == 0
    assert f"{path}: a preset" in str(caught.value)
    assert f"`yolact preset use {name}`" in str(caught.value)


def test_complete_settings_next_to_the_base_are_read_and_checked(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base.yaml").touch()
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert load_params(path) == parse_params(tree)
    path.write_text(yaml.safe_dump({"train": {"lr": "fast"}}), encoding="utf-8")
    with pytest.raises(SettingsError, match=r"own\.yaml: train\.lr: "):
        load_params(path)


def test_errors_across_two_sections_begin_with_the_key(tree: dict[str, Any]) -> None:
    tree["model"] |= {"backbone_weights": "none", "initial_weights": "none"}
    put(tree, "train.freeze", "stage1")
    assert refusal(tree).startswith("params.yaml: train.freeze: is stage1, but there are no weights to keep")
    put(tree, "train.freeze", "none")
    put(tree, "train.layer_decay", 0.15)
    assert refusal(tree) == (
        "params.yaml: train.layer_decay: is 0.15, with which a backbone without pretrained weights hardly learns: set "
        "train.layer_decay: 1, or model.backbone_weights or model.initial_weights"
    )
    tree["model"]["initial_weights"] = "models/coco"
    parse_params(tree)
    tree["model"]["initial_weights"] = "none"
    put(tree, "train.layer_decay", 1)
    tree["model"]["mask_rescoring"] = True
    put(tree, "train.augment.image_sizes", [128])
    assert refusal(tree).startswith("params.yaml: train.augment.image_sizes: with model.mask_rescoring")


def test_the_layers_that_can_be_frozen_are_listed(tree: dict[str, Any]) -> None:
    put(tree, "train.freeze", "all")
    assert refusal(tree) == (
        "params.yaml: train.freeze: input should be 'auto', 'none', 'stem', 'stage1', 'stage2', 'stage3', 'stage4', "
        "'stage5' or 'backbone' (found 'all')"
    )


@pytest.mark.parametrize("value", [0, -1, 1.5, "all", True, None])
def test_a_number_of_threads_is_auto_or_1_and_more(tree: dict[str, Any], value: Any) -> None:
    put(tree, "runtime.threads", value)
    assert refusal(tree).startswith("params.yaml: runtime.threads: must be auto, or a whole number of at least 1")


@pytest.mark.parametrize(("key", "value"), [("model.image_size", 4097), ("train.augment.image_sizes", [550, 100000])])
def test_an_input_too_large_for_any_machine_is_refused(tree: dict[str, Any], key: str, value: Any) -> None:
    put(tree, key, value)
    assert re.search(rf"{re.escape(key)}.*less than or equal to 4096", refusal(tree))


@pytest.mark.parametrize("data", [b"train: [1, 2", b"a: b: c", b"\tx: 1", b"\xff\xfe\x00train"])
def test_a_file_that_is_not_yaml_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(data)
    with pytest.raises(SettingsError, match=r"params\.yaml: not valid YAML"):
        load_params(path)


@pytest.mark.parametrize(
    ("written", "value"), [("1e-3", 1e-3), ("2E-3", 2e-3), ("1.e-3", 1e-3), ("1", 1.0), (".5", 0.5)]
)
def test_numbers_are_read_as_yaml_1_2_reads_them(tmp_path: Path, base_text: str, written: str, value: float) -> None:
    text = base_text.replace("  lr: 1.0e-3 ", f"  lr: {written} ")
    assert text != base_text
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_params(path).train.lr == value


def test_settings_cannot_be_changed_after_they_are_read(tree: dict[str, Any]) -> None:
    params = parse_params(tree)
    with pytest.raises(ValueError, match="frozen"):
        params.train.lr = 1.0  # type: ignore[misc]


def test_the_settings_survive_a_round_trip_through_yaml(tree: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert load_params(path) == parse_params(tree)


@pytest.mark.parametrize("word", ["yes", "on", "Off"])
def test_words_of_yaml_1_1_are_text_as_dvc_reads_them(tmp_path: Path, base_text: str, word: str) -> None:
    text = base_text.replace("source: sample", f"source: {word}", 1)
    assert text != base_text
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_params(path).data.source == word


def test_a_repeated_key_is_refused(tmp_path: Path, base_text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(base_text + "\nruntime:\n  device: cpu\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"(?s)params\.yaml: not valid YAML: .*duplicate key \"runtime\""):
        load_params(path)


def test_mask_rescoring_needs_masks_of_the_prototypes_size(tree: dict[str, Any]) -> None:
    put(tree, "model.mask_rescoring", True)
    put(tree, "train.loss.mask_upsampling", 2)
    assert "train.loss.mask_upsampling: must be 1 with model.mask_rescoring" in refusal(tree)
