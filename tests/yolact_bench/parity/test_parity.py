"""Parity: every kind of fixture is recognised by its content and checked, and every difference fails."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.yolact_bench.parity.parity_fixtures import (
    CLASSES,
    JSON_FILES,
    Arrays,
    encoded_meta,
    fixture_set,
    plus_arrays,
)
from yolact.errors import DataError
from yolact_bench.parity import Comparison, FileReport, ParityReport, run_parity
from yolact_bench.parity.report import compare

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {
    "a": "network",
    "b": "losses",
    "c": "unit vectors",
    "d": "anchor rows",
    "e": "anchor settings",
    "f": "state dict shapes",
}


@functools.cache
def stored() -> dict[str, Arrays]:
    return fixture_set()


def write(directory: Path, name: str, arrays: Arrays, file: str | None = None) -> Path:
    """Write a file of the set, under its own name or another one."""
    path = directory / (file or name)
    if name in JSON_FILES:
        path.write_text(json.dumps(arrays), encoding="utf-8")
    else:
        with path.open("wb") as opened:
            np.savez(opened, **encoded_meta(arrays))
    return path


def run(directory: Path, **files: Arrays) -> ParityReport:
    directory.mkdir(exist_ok=True)
    for name, arrays in files.items():
        write(directory, name, arrays)
    return run_parity(directory)


def names(file: FileReport) -> set[str]:
    return {row.name for row in file.rows}


def failed(report: ParityReport) -> dict[str, str]:
    """Failed checks and their notes."""
    return {row.name: row.note for file in report.files for row in file.failures}


def without(arrays: Arrays, *prefixes: str) -> Arrays:
    return {name: value for name, value in arrays.items() if not name.startswith(prefixes)}


def only(arrays: Arrays, *prefixes: str) -> Arrays:
    return {name: value for name, value in arrays.items() if name.startswith((*prefixes, "meta_json"))}


# --- every kind -----------------------------------------------------------------------------------------------------


def test_every_kind_is_recognised_by_its_content_and_passes(tmp_path: Path) -> None:
    """The files are called a to f, without an ending."""
    report = run(tmp_path, **stored())
    assert failed(report) == {}
    assert {file.file: file.kind for file in report.files} == KINDS
    assert report.unrecognised == []
    assert {file.file: file.unused for file in report.files if file.unused} == {}
    assert report.comparisons == sum(len(file.rows) for file in report.files) > 150


def test_weights_without_batch_norm_counters_are_checked_completely(tmp_path: Path) -> None:
    """Like files from before PyTorch 0.4.1; outputs do not depend on the counters."""
    whole = stored()["a"]
    bare = {name: value for name, value in whole.items() if not name.endswith(".num_batches_tracked")}
    assert len(bare) < len(whole)
    with_counters, without_counters = (run(tmp_path / name, a=a) for name, a in (("whole", whole), ("bare", bare)))
    assert failed(without_counters) == {}
    assert names(without_counters.files[0]) == names(with_counters.files[0])


def test_every_expected_array_has_a_row(tmp_path: Path) -> None:
    inputs = (
        "sd/",
        "input",
        "rect/input",
        "eval/gt",
        "pred/",
        "priors",
        "targets/",
        "num_crowds",
        "masks_",
        "meta_json",
    )
    unit_inputs = (
        "coding/priors", "coding/boxes", "coding/loc", "iou/a", "iou/b", "mask_iou/a", "mask_iou/b", "match/priors",
        "match/truths", "match/labels", "match/crowd_boxes", "sanitize/x", "crop/masks", "crop/boxes", "nms/boxes",
        "nms/scores", "nms/coeffs", "nms/trad_single/boxes", "prep/image", "prep/gt_",
    )  # fmt: skip
    for file in run(tmp_path, a=stored()["a"], b=stored()["b"], c=stored()["c"]).files:
        expected = set(without(stored()[file.file], *inputs, *unit_inputs))
        expected = {name.replace("masks_packed", "masks") for name in expected if not name.endswith("masks_shape")}
        expected = {name for name in expected if not name.startswith("ap/") or name.endswith("/ap")}
        assert {name.partition(" (")[0] for name in names(file)} >= expected


def test_the_network_runs_in_training_in_evaluation_and_prepared_for_inference(tmp_path: Path) -> None:
    [file] = run(tmp_path, a=stored()["a"]).files
    for name in ("loc", "conf", "mask", "proto", "priors"):
        for mode in ("", " (evaluation mode)", " (made ready for inference)"):
            assert f"train/{name}{mode}" in names(file)
    assert "train/segm" in names(file)
    assert "train/segm (evaluation mode)" not in names(file)
    assert "meta_json.eval.ap.mask" in names(file)


PLUS_ROWS = {
    *(f"det/swift/0/{name}" for name in ("boxes", "scores", "classes", "coeffs")),
    *(f"post/swift/0/{name}" for name in ("boxes", "scores_box", "scores_mask", "classes", "masks")),
    "dcn_unit/output",
    "maskiou70/output",
    "loss_plus/loss/B",
    "loss_plus/loss/I",
    "loss_plus/conf_t",
    "loss_plus/maskiou_target",
    "loss_plus/maskiou_label",
    "loss_plus/maskiou_pred",
    "loss_plus/maskiou_input_sum",
    "loss_plus/dI_dproto",
}


def test_layers_and_losses_of_a_plus_network(tmp_path: Path) -> None:
    """Its synthetic outputs do not belong to any input."""
    report = run(tmp_path, a=plus_arrays())
    assert names(report.files[0]) == PLUS_ROWS | {"train"}
    assert failed(report) == {"train": "could not be checked: the file has no input"}
    assert report.files[0].unused == []


def test_changes_of_a_plus_network_are_found(tmp_path: Path) -> None:
    arrays = plus_arrays()
    rows = {name for name in PLUS_ROWS if name.startswith(("dcn", "mask", "loss", "post")) and name in arrays}
    report = run(tmp_path, a=arrays | {name: changed(arrays[name]) for name in rows})
    assert failed(report).keys() == rows | {"train"}


def test_norms_of_gradients_may_be_in_the_settings(tmp_path: Path) -> None:
    arrays = plus_arrays()
    norm = float(np.sqrt((arrays["loss_plus/dI_dproto"] ** 2).sum()))
    for value, passes in ((norm, True), (norm * 1.01, False)):
        meta = arrays["meta_json"] | {"loss_plus": {"norm_dI_dproto": value}}
        [file] = run(tmp_path, a=arrays | {"meta_json": meta}).files
        assert [row.passed for row in file.rows if row.name == "meta_json.loss_plus.norm_dI_dproto"] == [passes]


def test_re_scored_masks_need_a_network_with_mask_re_scoring(tmp_path: Path) -> None:
    arrays = stored()["a"] | {"maskiou/input": np.zeros((1, 1, 70, 70)), "maskiou/output": np.zeros((1, CLASSES))}
    assert "needs a network with mask re-scoring" in failed(run(tmp_path, a=arrays))["maskiou"]


PERTURBED = [
    ("a", "train/proto", "train/proto (evaluation mode)"),
    ("a", "bn_batch/after/backbone.bn1.running_var", None),
    ("a", "rect/loc", None),
    ("a", "det/swift/1/boxes", None),
    ("a", "det/joint/0/scores", None),
    ("a", "det/plain/0/classes", None),
    ("a", "post/swift/0/boxes", None),
    ("a", "post/swift_st0.7/1/scores", None),
    ("a", "eval/num_det/mask", None),
    ("a", "eval/ap_per_class/box", None),
    ("b", "default/loss/M", None),
    ("b", "default/conf_t", None),
    ("b", "default/grad/loc", None),
    ("c", "nms/trad_t35/classes", None),
    ("c", "nms/fast_second_threshold/scores", None),
    ("c", "sanitize/size33_pad2_int/lo", None),
    ("c", "crop/kept_pad3", None),
    ("c", "ap/0/ap", None),
    ("c", "prep/preserve_ar_wh", None),
    ("c", "prep/train_noaug/image", "prep/train_noaug/image (before rounding to uint8)"),
    ("d", "small/rows", None),
]


def changed(value: np.ndarray) -> np.ndarray:
    """Change one entry by a thousandth of the largest value, or by one."""
    value = np.array(value, order="C")
    flat = value.reshape(-1)
    if value.dtype == bool:
        flat[0] = not flat[0]
    elif value.dtype.kind in "iu":
        flat[0] += 1
    else:
        flat[0] += max(1e-3 * np.abs(flat).max(), 1e-6)
    return value


@pytest.mark.parametrize("kind", "abcd")
def test_a_change_of_any_expected_array_is_found(tmp_path: Path, kind: str) -> None:
    cases = {name: row or name for file, name, row in PERTURBED if file == kind}
    arrays = stored()[kind] | {name: changed(stored()[kind][name]) for name in cases}
    if kind == "d":
        write(tmp_path, "e", stored()["e"])
    assert failed(run(tmp_path, **{kind: arrays})).keys() >= set(cases.values())


def test_a_change_of_a_mask_is_found(tmp_path: Path) -> None:
    packed = np.array(stored()["a"]["post/plain/0/masks_packed"])
    packed[: len(packed) // 20] ^= 255
    assert failed(run(tmp_path, a=stored()["a"] | {"post/plain/0/masks_packed": packed})).keys() == {
        "post/plain/0/masks"
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("column_sums", [1, 2, 3, 4]),
        ("parameters", 7),
        ("proto_shape", [1, 16, 16, 5]),
        ("num_classes_with_background", 3),
        ("selected_layers", [0, 1, 2]),
    ],
)
def test_a_change_of_a_stored_count_is_found(tmp_path: Path, key: str, value: object) -> None:
    tree = {"small": stored()["e"]["small"] | {key: value}}
    assert failed(run(tmp_path, e=tree, f=stored()["f"])).keys() == {f"small/{key}"}


def test_another_number_of_anchors_is_found_in_anchors_and_predictions(tmp_path: Path) -> None:
    tree = {"small": stored()["e"]["small"] | {"num_priors": 259}}
    found = failed(run(tmp_path, e=tree, f=stored()["f"]))
    assert found.keys() == {"small/num_priors", "small/num_priors (predictions)"}


def test_a_change_of_a_published_configuration_is_found(tmp_path: Path) -> None:
    """`small` has the anchors of no published configuration; under the name of one it fails in all."""
    report = run(tmp_path, e={"yolact_base": stored()["e"]["small"]})
    assert failed(report).keys() >= {
        f"yolact_base/{name}"
        for name in ("num_priors", "max_size", "pred_scales", "use_square_anchors", "parameters", "column_sums")
    }


def test_another_shape_in_a_state_dict_is_named(tmp_path: Path) -> None:
    shapes = {"yolact_base": {"backbone.conv1.weight": [64, 3, 7, 7], "backbone.bn1.weight": [65]}}
    [(name, note)] = failed(run(tmp_path, f=shapes)).items()
    assert name == "yolact_base (keys and shapes)"
    assert note.startswith("differ: backbone.bn1.bias, backbone.bn1.num_batches_tracked")


def test_configurations_need_no_other_file(tmp_path: Path) -> None:
    report = run(tmp_path, f=stored()["f"])
    assert failed(report) == {}
    assert report.comparisons == 1


def test_anchor_rows_of_an_unknown_configuration_cannot_be_checked(tmp_path: Path) -> None:
    assert "no JSON file here has its anchor settings" in failed(run(tmp_path, d=stored()["d"]))["small/rows"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preapply_sqrt": True}, "preapply_sqrt on or use_pixel_scales off"),
        ({"pred_aspect_ratios": [[[1, 2, 0.5]]] * 4 + [[[1, 2, 3]]]}, "levels with different aspect ratios"),
    ],
)
def test_anchors_that_cannot_be_generated_are_named(tmp_path: Path, changes: Arrays, words: str) -> None:
    report = run(tmp_path, e={"small": stored()["e"]["small"] | changes})
    assert words in failed(report)["small"]


# --- settings come from the files -----------------------------------------------------------------------------------


def test_detections_with_nearly_equal_scores_may_change_places(tmp_path: Path) -> None:
    unit = only(stored()["c"], "nms/boxes", "nms/scores", "nms/coeffs", "nms/fast_k30")
    scores = np.array(unit["nms/scores"])
    folder = "nms/fast_k30_t40"
    first, second = (float(unit[f"{folder}/scores"][row]) for row in (3, 4))
    scores[scores == np.float32(second)] = first - 1e-7
    found = np.array(unit[f"{folder}/scores"])
    found[4] = first - 1e-7
    swapped = np.arange(len(found))
    swapped[[3, 4]] = 4, 3
    rows = {f"{folder}/{name}": unit[f"{folder}/{name}"][swapped] for name in ("boxes", "classes", "coeffs")}
    arrays = unit | rows | {"nms/scores": scores, f"{folder}/scores": found}
    assert failed(run(tmp_path, c=arrays)) == {}
    found[4] = first - 1e-3
    scores[scores == np.float32(first - 1e-7)] = first - 1e-3
    assert failed(run(tmp_path, c=arrays)).keys() >= {f"{folder}/boxes"}


def test_no_detections_above_a_score_match_an_empty_array_of_any_shape(tmp_path: Path) -> None:
    """The published code gives four empty tensors of shape (0,)."""
    nothing = {name: np.zeros(0, dtype=np.float32) for name in ("classes", "scores", "boxes")}
    nothing |= {"masks_packed": np.zeros(0, dtype=np.uint8), "masks_shape": np.array([0])}
    folder = {f"post/swift_st1/1/{name}": value for name, value in nothing.items()}
    [file] = run(tmp_path, a=without(stored()["a"], "sd/fpn") | folder).files
    assert {row.passed for row in file.rows if row.name.startswith("post/swift_st1/1/")} == {True}
    folder = {name.replace("_st1", "_st0.5"): value for name, value in folder.items()}
    [file] = run(tmp_path, a=without(stored()["a"], "sd/fpn") | folder).files
    assert {row.passed for row in file.rows if row.name.startswith("post/swift_st0.5/1/")} == {False}


def test_a_mode_whose_name_looks_like_a_score_is_a_mode(tmp_path: Path) -> None:
    renamed = {name.replace("/plain/", "/plain_st0.9/"): value for name, value in stored()["a"].items()}
    meta = json.loads(json.dumps(renamed["meta_json"]))
    meta["detect"]["modes"]["plain_st0.9"] = meta["detect"]["modes"].pop("plain")
    report = run(tmp_path, a=without(renamed, "post/plain_st0.7", "sd/fpn") | {"meta_json": meta})
    assert failed(report).keys() == {"sd (building the network)"}
    assert "post/plain_st0.9/0/masks" in names(report.files[0])


def test_the_number_of_sampled_masks_is_in_the_variants_name(tmp_path: Path) -> None:
    """The object has one anchor, so one mask is enough and no permutation is drawn."""
    arrays = stored()["b"] | {"sample1/loss/M": stored()["b"]["default/loss/M"]}
    assert failed(run(tmp_path, b=arrays)) == {}
    report = run(tmp_path, b=arrays | {"sample1/perm/0": np.array([0])})
    assert failed(report) == {"sample1/loss": "could not be checked: the loss draws 0 of 1 permutations"}


def test_sampled_masks_are_those_of_the_stored_permutation(tmp_path: Path) -> None:
    """One of an object's two anchors is sampled; its coefficients give a mask with a higher loss."""
    arrays = dict(stored()["b"])
    arrays["priors"] = np.array(arrays["priors"])
    arrays["priors"][1] = arrays["priors"][0]
    arrays["pred/mask"] = np.array(arrays["pred/mask"])
    arrays["pred/mask"][0, 1] = arrays["pred/mask"][0, 0] - 1
    arrays = without(arrays, "default")
    terms = {}
    for order in ([0, 1], [1, 0]):
        case = arrays | {"sample1/loss/M": np.array(0.0), "sample1/perm/0": np.array(order)}
        [row] = run(tmp_path, b=case).files[0].failures
        terms[tuple(order)] = row.absolute_error
    assert terms[0, 1] == pytest.approx(float(stored()["b"]["default/loss/M"]), rel=1e-5)  # 2 x 1 mask / 2 positives
    assert terms[1, 0] != pytest.approx(terms[0, 1], rel=1e-3)
    report = run(tmp_path, b=arrays | {"sample1/loss/M": np.array(0.0)})
    assert "draws more permutations than the 0 that are stored" in failed(report)["sample1/loss"]
    report = run(tmp_path, b=arrays | {"sample1/loss/M": np.array(0.0), "sample1/perm/0": np.array([0])})
    assert "draws a permutation of 2, the stored one has 1" in failed(report)["sample1/loss"]


def test_the_crowd_rule_is_off_if_the_variants_name_says_so(tmp_path: Path) -> None:
    """A crowd on the first corner's anchor removes it from the negatives, except with `no_crowd_rule`."""
    arrays = without(stored()["b"], "default")
    crowd = np.array([[0, 0, 0.2, 0.2, -1]], dtype=np.float32)
    arrays |= {
        "targets/0": np.concatenate([arrays["targets/0"], crowd]),
        "num_crowds": np.array([1]),
        "masks_packed/0": np.packbits(np.zeros((2, 8, 8), dtype=np.uint8)),
        "masks_shape/0": np.array([2, 8, 8]),
        "default/loss/C": np.array(0.0),
        "default/conf_t": np.array([[2, -1, 0, 0, 0]]),
        "no_crowd_rule/loss/C": stored()["b"]["default/loss/C"],
        "no_crowd_rule/conf_t": np.array([[2, 0, 0, 0, 0]]),
    }
    assert failed(run(tmp_path, b=arrays)).keys() == {"default/loss/C"}


def test_terms_that_need_a_network_are_reported(tmp_path: Path) -> None:
    report = run(tmp_path, b=stored()["b"] | {"default/loss/I": np.array(0.0), "default/maskiou_pred": np.zeros(1)})
    assert failed(report).keys() == {"default/loss/I", "default/maskiou"}
    assert all("mask re-scoring is needed" in note for note in failed(report).values())


# --- what cannot be checked -----------------------------------------------------------------------------------------


def test_arrays_that_no_check_uses_are_listed(tmp_path: Path) -> None:
    arrays = stored()["c"] | {"iou/other": np.zeros(2), "later/thing": np.zeros(3), "nms/soft_t50/boxes": np.zeros(1)}
    [file] = run(tmp_path, c=arrays).files
    assert file.unused == ["iou/other", "later/thing", "nms/soft_t50/boxes"]
    assert file.failures == []


def test_settings_that_no_check_uses_are_listed(tmp_path: Path) -> None:
    [file] = run(tmp_path, e={"small": stored()["e"]["small"] | {"colour": 3}}).files
    assert "small/colour" in file.unused


def test_files_of_unknown_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("hello", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "stranger.npz", left=np.zeros(1), right=np.zeros(1))
    (tmp_path / "list.json").write_text("[1, 2]", encoding="utf-8")
    report = run(tmp_path, c=stored()["c"])
    assert report.unrecognised == [
        "list.json: content of unknown kind (empty)",
        "notes.md: neither .npz nor JSON",
        "stranger.npz: content of unknown kind (left, right)",
    ]
    assert [file.file for file in report.files] == ["c"]


@pytest.mark.parametrize("cut", [0, 10, 2000])
def test_a_truncated_file_fails_and_the_rest_is_checked(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path, "b", stored()["b"], "short.npz")
    path.write_bytes(path.read_bytes()[:cut])
    report = run(tmp_path, c=stored()["c"])
    assert failed(report).keys() == {"short.npz"}
    assert failed(report)["short.npz"].startswith("damaged or truncated")
    assert {file.kind for file in report.files} == {"not readable", "unit vectors"}


def test_a_truncated_json_file_fails(tmp_path: Path) -> None:
    path = write(tmp_path, "e", stored()["e"], "settings")
    path.write_text(path.read_text()[:-5], encoding="utf-8")
    assert failed(run(tmp_path, c=stored()["c"]))["settings"].startswith("damaged or truncated, not JSON")


def test_an_array_that_is_damaged_inside_fails_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "c", stored()["c"])
    data = bytearray(path.read_bytes())
    start = data.index(stored()["c"]["sanitize/x1"].tobytes())
    data[start] ^= 255
    path.write_bytes(data)
    report = run_parity(tmp_path)
    assert failed(report).keys() == {"sanitize"}
    assert "sanitize/x1 cannot be read" in failed(report)["sanitize"]
    assert "mask_iou/iou" in names(report.files[0])


def test_a_check_that_raises_is_reported_and_the_rest_runs(tmp_path: Path) -> None:
    arrays = without(stored()["a"], "train/priors", "meta_json")
    arrays["meta_json"] = {key: value for key, value in stored()["a"]["meta_json"].items() if key != "eval"}
    report = run(tmp_path, a=arrays)
    assert failed(report)["det/swift"] == "could not be checked: the file has no train/priors"
    assert "rect/loc" in names(report.files[0])
    assert "post/swift/0/masks" in names(report.files[0])


def test_weights_of_an_unknown_network_are_reported_and_the_rest_runs(tmp_path: Path) -> None:
    arrays = without(stored()["a"], "sd/proto_net.4.weight")
    report = run(tmp_path, a=arrays)
    assert "proto_net.4.weight" in failed(report)["sd (building the network)"]
    assert "det/swift/0/boxes" in names(report.files[0])


@pytest.mark.parametrize("key", ["detect.top_k", "detect.modes.swift", "pred_scales"])
def test_missing_settings_are_named(tmp_path: Path, key: str) -> None:
    meta = json.loads(json.dumps(stored()["a"]["meta_json"]))
    inner = functools.reduce(lambda tree, part: tree[part], key.split(".")[:-1], meta)
    del inner[key.rpartition(".")[2]]
    notes = failed(run(tmp_path, a=stored()["a"] | {"meta_json": meta})).values()
    assert f"could not be checked: meta_json has no {key}" in notes


def test_masks_with_too_few_bits_are_reported(tmp_path: Path) -> None:
    name = "masks_packed/0"
    report = run(tmp_path, b=stored()["b"] | {name: stored()["b"][name][:3]})
    assert "masks_packed/0 has 24 bits, but masks_shape/0 needs 64" in failed(report)["default"]


def test_text_instead_of_numbers_is_reported(tmp_path: Path) -> None:
    report = run(tmp_path, c=stored()["c"] | {"iou/a": np.array(["x"])})
    assert "iou/a is not an array of numbers" in failed(report)["iou"]


def test_our_nan_fails(tmp_path: Path) -> None:
    """Two boxes without area: 0 / 0."""
    boxes = np.zeros((1, 4), dtype=np.float32)
    arrays = {"iou/a": boxes, "iou/b": boxes, "iou/iou": np.zeros((1, 1)), "iou/crowd": np.full((1, 1), np.nan)}
    report = run(tmp_path, c=arrays)
    assert failed(report) == {"iou/iou": "1 of our values are NaN", "iou/crowd": "1 expected values are NaN"}


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: folder / "nowhere", "no such directory"),
        (
            lambda folder: folder,
            r"nothing here can be checked \(it has no files\)\nName a directory with .npz or JSON",
        ),
        (
            lambda folder: (folder / "x.txt").write_text("x") and folder,
            "can be checked\n  x.txt: neither .npz nor JSON",
        ),
    ],
)
def test_a_directory_without_fixtures_is_an_error(tmp_path: Path, prepare: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(DataError, match=words):
        run_parity(prepare(tmp_path))


def test_fixtures_without_expected_values_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing here can be checked"):
        run(tmp_path, b=without(stored()["b"], "default"))


# --- comparing ------------------------------------------------------------------------------------------------------


def test_the_relative_error_is_the_largest_error_over_the_largest_value() -> None:
    row = compare("x", np.array([1.0, 20.001]), np.array([1.0, 20.0]))
    assert row.absolute_error == pytest.approx(1e-3)
    assert row.relative_error == pytest.approx(5e-5)
    assert row.passed
    assert not compare("x", np.array([1.003, 20.0]), np.array([1.0, 20.0])).passed


def test_the_relative_error_against_zeros_is_the_absolute_one() -> None:
    assert compare("x", [5e-5, 0.0], [0.0, 0.0]) == Comparison("x", (2,), 5e-5, 5e-5, passed=True)
    assert not compare("x", [2e-4], [0.0]).passed


def test_decisions_must_be_equal_and_pixels_nearly() -> None:
    expected = np.zeros(20_000, dtype=np.int64)
    found = expected.copy()
    found[:2] = 3
    assert compare("x", found, expected) == Comparison("x", (20_000,), 3.0, 1e-4, passed=False)
    assert compare("x", found, expected, pixels=True).passed
    found[2] = 1
    assert not compare("x", found, expected, pixels=True).passed


def test_other_shapes_fail() -> None:
    row = compare("x", np.zeros((2, 3)), np.zeros((3, 2)), note="why")
    assert row == Comparison("x", (3, 2), None, None, passed=False, note="our shape is (2, 3); why")


def test_infinity_equals_only_infinity() -> None:
    infinity = float("inf")
    assert compare("x", [infinity, 1.0], [infinity, 1.0]).passed
    assert compare("x", [infinity, 1.0], [1.0, 1.0]).note == "1 values differ by infinity"
    assert not compare("x", [1.0, 1.0], [-infinity, 1.0]).passed


def test_nothing_equals_nothing() -> None:
    assert compare("x", np.zeros((0, 4)), np.zeros((0, 4))) == Comparison("x", (0, 4), 0.0, 0.0, passed=True)


# --- numbers of the published implementation ------------------------------------------------------------------------


def test_all_results_of_the_published_implementation_are_equal_under_any_file_name(
    reference_fixtures: Path, tmp_path: Path
) -> None:
    files = [path for path in sorted(reference_fixtures.iterdir()) if path.suffix in (".npz", ".json")]
    for number, path in enumerate(files):
        (tmp_path / f"file {number}").symlink_to(path)
    report = run_parity(tmp_path)
    assert failed(report) == {}
    assert sorted(file.kind for file in report.files) == sorted([*KINDS.values(), "network"])
    assert {file.file: file.unused for file in report.files if file.unused} == {}
    assert report.unrecognised == []
    assert report.comparisons >= 505


def test_one_changed_value_of_the_published_implementation_is_found(reference_fixtures: Path, tmp_path: Path) -> None:
    with np.load(reference_fixtures / "units.npz") as loaded:
        arrays = dict(loaded)
    arrays["nms/cross_k200_t50/scores"] = changed(arrays["nms/cross_k200_t50/scores"])
    np.savez(tmp_path / "units.npz", **arrays)
    shutil.copy(reference_fixtures / "anchors.json", tmp_path)
    assert failed(run_parity(tmp_path)).keys() == {"nms/cross_k200_t50/scores"}


def test_a_bare_array_is_reported(tmp_path: Path) -> None:
    with (tmp_path / "bare.npz").open("wb") as file:
        np.save(file, np.arange(3))
    [report] = run_parity(tmp_path).files
    assert "contains a single array" in str(report)
