"""Lineage of a run, against git itself and hand-made files."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from yolact.errors import DataError
from yolact_ops.lineage.dvc_lock import hash_dvc_lock
from yolact_ops.lineage.git import git_state
from yolact_ops.lineage.hashing import hash_files, hash_params
from yolact_ops.lineage.lineage import gather_lineage
from yolact_ops.lineage.redaction import redact, without_credentials
from yolact_ops.lineage.statistics import read_data_digest
from yolact_ops.settings.params import Params, load_params, parse_params


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def work_tree(tmp_path: Path) -> Path:
    """A git repository with one commit of code, settings and a metric, and a remote with a token in its URL."""
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk")
    (tmp_path / "metrics").mkdir()
    for name in ("code.py", "params.yaml", "metrics/eval.json"):
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    git(tmp_path, "remote", "add", "origin", "https://someone:s3cret-token@git.example.org/team/project.git")
    return tmp_path


def test_a_clean_checkout_is_named_by_its_commit_branch_and_remote(work_tree: Path, params: Params) -> None:
    lineage = gather_lineage(params, root=work_tree)
    assert lineage.git_commit == git(work_tree, "log", "-1", "--format=%H")
    assert lineage.git_dirty is False
    assert lineage.git_branch == "trunk"
    assert lineage.git_remote == "https://git.example.org/team/project.git"


@pytest.mark.parametrize(
    ("changed", "dirty"),
    [
        ("code.py", True),
        ("params.yaml", False),
        ("new_module.py", True),
        ("notes.txt", False),
        ("metrics/eval.json", False),
        ("dvc.lock", False),
    ],
)
def test_dirty_means_that_the_commit_does_not_have_the_code(
    work_tree: Path, params: Params, changed: str, dirty: bool
) -> None:
    (work_tree / changed).write_text("stages: {}\n")
    assert gather_lineage(params, root=work_tree).git_dirty is dirty


def test_changes_of_ignored_files_do_not_count(work_tree: Path) -> None:
    (work_tree / "params.yaml").write_text("train: {lr: 1}")
    commit = git(work_tree, "rev-parse", "HEAD")
    assert git_state(work_tree) == (commit, True)
    assert git_state(work_tree, ignoring=["params.yaml"]) == (commit, False)


def test_a_detached_head_has_a_commit_and_no_branch(work_tree: Path, params: Params) -> None:
    git(work_tree, "checkout", "--quiet", "--detach")
    lineage = gather_lineage(params, root=work_tree)
    assert lineage.git_commit is not None
    assert lineage.git_branch is None


def test_outside_git_the_git_facts_are_unknown_and_give_no_tags(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    lineage = gather_lineage(params, root=tmp_path)
    assert (lineage.git_commit, lineage.git_dirty, lineage.git_branch, lineage.git_remote) == (None,) * 4
    assert not [tag for tag in lineage.as_tags() if tag.startswith("git_")]


def test_without_the_git_program_the_git_facts_are_unknown(
    work_tree: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert gather_lineage(params, root=work_tree).git_commit is None


def test_tags_are_complete_and_text_only(work_tree: Path, params: Params) -> None:
    (work_tree / "dvc.lock").write_text("schema: '2.0'\nstages:\n  ingest: {cmd: a}\n")
    (work_tree / "stats.json").write_text('{"digest": "d1"}')
    tags = gather_lineage(params, eval_data_dir=work_tree, root=work_tree).as_tags()
    assert set(tags) == {
        "git_commit",
        "git_dirty",
        "git_branch",
        "git_remote",
        "code_version",
        "package_version",
        "dvc_lock_hash",
        "params_hash",
        "data_digest",
        "host",
        "user",
        "python_version",
        "torch_version",
        "torchvision_version",
        "numpy_version",
        "mlflow_version",
        "dvc_version",
        "kfp_version",
    } | ({"gpu", "cuda_version"} if torch.cuda.is_available() else set())
    assert all(isinstance(value, str) and value for value in tags.values())
    assert tags["git_dirty"] == "false"
    assert "s3cret-token" not in json.dumps(tags)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://user:pa@ss@host.org/a/b.git", "https://host.org/a/b.git"),
        ("https://ghp_token@host.org/a.git", "https://host.org/a.git"),
        ("https://host.org/a.git?access_token=xyz#x", "https://host.org/a.git"),
        ("https://host.org/@scope/a.git", "https://host.org/@scope/a.git"),
        ("ssh://git:word@host.org:2222/a.git", "ssh://git@host.org:2222/a.git"),
        ("ssh://git@host.org/a.git", "ssh://git@host.org/a.git"),
        ("git@host.org:team/a.git", "git@host.org:team/a.git"),
        ("/srv/git/a.git", "/srv/git/a.git"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("postgresql://mlflow:word@db/mlflow?password=other", "postgresql://db/mlflow"),
    ],
)
def test_credentials_are_taken_out_of_urls(url: str, expected: str) -> None:
    assert without_credentials(url) == expected


SECRET = st.text("abcXYZ0189:@?#!$&'()*+,;=%-._~", min_size=1).map(lambda text: f"begin-{text}-end")


@given(scheme=st.sampled_from(["http", "https", "ssh", "postgresql", "git+https"]), user=SECRET, password=SECRET)
def test_no_password_survives(scheme: str, user: str, password: str) -> None:
    assume(password not in user)
    url = f"{scheme}://{user}:{password}@host.org/path"
    assert password not in without_credentials(url)
    assert password not in redact(f"request to {url} failed: {url}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "403 Client Error: Forbidden for url: https://b.s3.org/k.zip?X-Amz-Signature=0f1e&X-Amz-Date=1 (2 tries)",
            "403 Client Error: Forbidden for url: https://b.s3.org/k.zip (2 tries)",
        ),
        (
            "'https://host.org/a#token=1' and https://me:word@host.org?sig=2",
            "'https://host.org/a' and https://host.org",
        ),
        ("what? see https://host.org/a", "what? see https://host.org/a"),
        ("HTTPS://host.org/a?sig=2", "HTTPS://host.org/a"),
        ("https://me:wo/rd@host.org/a", "https://host.org/a"),
        ("https://host.org:8080/a@b", "https://host.org:8080/a@b"),
        ("s3://bucket/what?#1 failed", "s3://bucket/what?#1 failed"),
    ],
)
def test_messages_lose_signatures_of_addresses(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_the_params_hash_follows_values_not_spelling(tmp_path: Path, params: Params, repository: Path) -> None:
    tree: dict[str, Any] = yaml.safe_load((repository / "conf" / "base.yaml").read_text())
    reordered = tmp_path / "params.yaml"
    reordered.write_text(json.dumps(dict(reversed(tree.items()))))
    assert hash_params(load_params(reordered)) == hash_params(params)
    tree["train"]["lr"] *= 2
    assert hash_params(parse_params(tree)) != hash_params(params)


def test_one_file_is_hashed_plainly_and_several_cannot_be_mixed_up(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"ab")
    second.write_bytes(b"c")
    assert hash_files(first) == hashlib.sha256(b"ab").hexdigest()
    before = hash_files(first, second)
    first.write_bytes(b"a")
    second.write_bytes(b"bc")
    assert hash_files(first, second) != before


def test_the_lock_hash_sees_every_stage_but_register(tmp_path: Path) -> None:
    def lock(**stages: dict[str, str]) -> str:
        path = tmp_path / "dvc.lock"
        path.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
        return hash_dvc_lock(path)

    train, evaluate = {"md5": "1"}, {"md5": "2"}
    during = lock(train=train, evaluate=evaluate)
    assert lock(register={"md5": "3"}, evaluate=evaluate, train=train) == during
    assert lock(train={"md5": "9"}, evaluate=evaluate) != during


def test_a_conflicted_lock_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text("<<<<<<< HEAD\nstages: {}\n")
    with pytest.raises(DataError, match=r"dvc\.lock: not a DVC lock file"):
        hash_dvc_lock(path)


def test_facts_from_the_environment_are_in_the_tags(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = {"YOLACT_IMAGE": "host/yolact:1", "YOLACT_IMAGE_DIGEST": "sha256:ab", "KFP_RUN_ID": "r-1"}
    for name, value in (stated | {"YOLACT_COMMIT": "c0ffee", "YOLACT_CODE_VERSION": "unknown"}).items():
        monkeypatch.setenv(name, value)
    tags = gather_lineage(params, root=tmp_path).as_tags()
    assert [tags[name] for name in ("image", "image_digest", "pipeline_run_id")] == list(stated.values())
    assert tags["git_commit"] == "c0ffee"
    assert "code_version" not in tags


def test_the_code_version_names_tag_and_changes_of_the_code(work_tree: Path, params: Params) -> None:
    git(work_tree, "tag", "v1.2")
    assert gather_lineage(params, root=work_tree).code_version == "v1.2"
    (work_tree / "dvc.lock").write_text("stages: {}")
    git(work_tree, "add", "dvc.lock")
    (work_tree / "params.yaml").write_text("train: {lr: 1}")
    assert gather_lineage(params, root=work_tree).code_version == "v1.2"
    (work_tree / "code.py").write_text("2\n")
    assert gather_lineage(params, root=work_tree).code_version == "v1.2-dirty"


def test_only_lock_entries_before_the_step_count(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"

    def hashes(**stages: str) -> list[str]:
        path.write_text(yaml.safe_dump({"stages": {name: {"cmd": cmd} for name, cmd in stages.items()}}))
        return [hash_dvc_lock(path, before=step) for step in ("train", "evaluate", "register")]

    first = hashes(source="a", ingest="a", preprocess="a", train="a", evaluate="a", register="a")
    assert len(set(first)) == 3
    assert hashes(source="a", ingest="a", preprocess="a") == [first[0]] * 3
    retrained = hashes(source="a", ingest="a", preprocess="a", train="b", evaluate="a", register="a")
    assert [old == new for old, new in zip(first, retrained, strict=True)] == [True, False, False]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"digest": ""}'])
def test_processed_data_without_a_digest_says_to_run_preprocess(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "stats.json").write_text(content)
    with pytest.raises(DataError, match=r"stats\.json.*preprocess"):
        read_data_digest(tmp_path)
