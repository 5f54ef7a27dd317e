"""What MkDocs calls: adds the pages beside the code and the generated reference, and adapts links."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pages import ROOT, adapt, documents, linked_files, places, shown_file
from pymdownx.slugs import slugify
from reference import PAGES


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give headings the anchors that GitHub gives them, so that links work in both places."""
    # MkDocs has this folder on the path only while it loads this file; `reference` imports modules later.
    sys.path.append(str(Path(__file__).resolve().parent))
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not in docs/."""
    _places.cache_clear()
    for path, place in documents().items():
        if not path.startswith("docs/"):
            files.append(File.generated(config, place, content=(ROOT / path).read_text(encoding="utf-8")))
    for path in linked_files():
        shown = shown_file(path, (ROOT / path).read_text(encoding="utf-8"))
        files.append(File.generated(config, f"{path}.md", content=shown, inclusion=InclusionLevel.NOT_IN_NAV))
    for place, make in PAGES.items():
        files.append(File.generated(config, place, content=make()))
    files.append(File.generated(config, "icon.svg", abs_src_path=str(ROOT / "serving/page/icon.svg")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adapt the links of a written page."""
    origins = {place: path for path, place in documents().items()}
    path = origins.get(page.file.src_uri)
    return adapt(markdown, path, _places()) if path else markdown


_places = cache(places)
