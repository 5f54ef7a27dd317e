"""Loss terms and data formats of an installed package; for backbones see models/test_outside_backbone.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from yolact import plugins
from yolact.backbone_registry import find_backbone
from yolact.errors import SettingsError
from yolact.formats import registry
from yolact.losses.terms import LOSS_TERMS, LossTerm, check_weights, register_loss_term

MODULES = {
    "yolact.loss_terms": (
        "from tests.yolact.losses.dice import DICE\n"
        "from yolact.losses.terms import register_loss_term\n"
        "register_loss_term('dice', DICE)\n"
    ),
    "yolact.formats": (
        "from tests.yolact.formats import index_masks\n"
        "from yolact.formats.registry import register_format\n"
        "register_format(index_masks)\n"
    ),
}
"""A plugin's module by the entry point group that names it."""

PROGRAMS = {
    "yolact.loss_terms": (
        "from yolact.errors import SettingsError\n"
        "from yolact.losses.terms import LOSS_TERMS, check_weights\n"
        "try: check_weights([name for name in LOSS_TERMS])\n"
        "except SettingsError as error: print(str(error).partition(';')[0])\n"
    ),
    "yolact.formats": "from yolact.formats.registry import formats\nprint(formats()[-1].NAME)\n",
}
EXPECTED = {"yolact.loss_terms": "train.loss.weights.dice: missing", "yolact.formats": "index masks"}


@pytest.mark.parametrize("group", MODULES)
def test_an_installed_package_adds_to_the_registry(group: str, repository: Path, tmp_path: Path) -> None:
    installed = tmp_path / "addition-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: addition\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[{group}]\naddition = addition\n")
    (tmp_path / "addition.py").write_text(MODULES[group])
    program = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(repository)!r}]\n{PROGRAMS[group]}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == (EXPECTED[group], 0), done.stderr


def test_a_plugin_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Entry:
        value = "broken_plugin"

        def load(self) -> None:
            raise ImportError("No module named 'timm'")

    monkeypatch.setattr(plugins.importlib.metadata, "entry_points", lambda group: [Entry()])
    plugins.load_plugins.cache_clear()
    try:
        find_backbone("resnet50")  # needs no plugin
        for lookup in (
            lambda: find_backbone("unknown"),
            lambda: check_weights(list(LOSS_TERMS)),
            lambda: registry.read_dataset(tmp_path),
        ):
            with pytest.raises(SettingsError, match=r"the plugin 'broken_plugin' .* cannot be imported: No module"):
                lookup()
    finally:
        plugins.load_plugins.cache_clear()


@pytest.mark.parametrize("name", ["total", "epoch", "box"])
def test_a_loss_term_cannot_take_a_name_in_use(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        register_loss_term(name, LossTerm(lambda context: None, normaliser="images"))
