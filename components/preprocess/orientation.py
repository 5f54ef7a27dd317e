"""Images with an EXIF orientation whose own files do not say on which image their masks are drawn: ask the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.preprocess.report import GalleryImage
from yolact.formats.dataset import ImageSource
from yolact.formats.preparation import ImageSummary, PreparedImage, RejectedImage, parsed_rows
from yolact.formats.problems import Problem
from yolact_ops.reports.pages import evenly_spaced

SHOWN_IMAGES = 4
"""Maximum number of images of which the report shows both readings."""


ReadAs = Callable[[int, bool, Path], PreparedImage | RejectedImage]
"""Prepares the image at a place among those left open, with masks as drawn on the upright image or as stored, and
writes it into a folder."""


@dataclass(frozen=True)
class Undecided:
    """Images of which the others do not say either whether masks are drawn on the upright image."""

    sources: Sequence[ImageSource]
    upright: int
    """Number of other images whose size says that masks are drawn on the upright image."""
    as_stored: int
    """Number of those whose size says that they are drawn on the image as stored."""
    read_as: ReadAs
    """Reads one of ``sources``."""

    def problems(self) -> Mapping[str, Sequence[Problem]]:
        """A problem for each image, by its id."""
        reason = (
            "has an EXIF orientation, and nothing says whether its masks are drawn on the upright image or on the one "
            "as stored; set data.exif"
        )
        kind = "masks drawn on the upright image or as stored? data.exif decides"
        return {source.image_id: [Problem(source.image_id, reason, kind)] for source in self.sources}

    def refusal(self, root: str, page: str) -> str:
        """The error message; ``page`` is where `readings` are shown."""
        count = len(self.sources)
        images, have = ("image", "has") if count == 1 else ("images", "have")
        if self.upright:
            others = f"those of other images disagree ({self.upright} upright, {self.as_stored} as stored)"
        else:
            others = "no other image decides"
        return (
            f"{root}: {count} {images}, such as {self.sources[0].image_id}, {have} an EXIF orientation, by which "
            "viewers turn images. Were the masks drawn on the turned image, as most labelling tools show it, or on the "
            f"image as stored, as many scripts read it? Their size leaves it open, and {others}. "
            f"{page} shows both: set data.exif=upright or data.exif=as_stored in params.yaml."
        )

    def readings(self, folder: Path) -> list[Mapping[str, GalleryImage]]:
        """Some of the images with their masks, read in both ways, by the value of ``data.exif``.

        Args:
            folder: existing folder for the images to show.
        """
        shown: list[Mapping[str, GalleryImage]] = []
        for place in evenly_spaced(len(self.sources), SHOWN_IMAGES):
            drawings = {}
            for name, upright in (("upright", True), ("as_stored", False)):
                target = folder / ".readings" / name
                target.mkdir(parents=True, exist_ok=True)
                prepared = self.read_as(place, upright, target)
                if isinstance(prepared, PreparedImage):
                    summary, objects = prepared.summary, parsed_rows(prepared.rows)
                    path = target / summary.file_name
                    drawings[name] = GalleryImage(path, summary.width, summary.height, objects)
            shown.append(drawings)
        return shown


def infer(sources: Sequence[ImageSource], others: Iterable[ImageSummary], read_as: ReadAs) -> bool | Undecided:
    """Whether masks are drawn on the upright image, as all other images have it whose size says so.

    Args:
        sources: the images that are left open.
        others: all others.
        read_as: reads one of ``sources``.
    """
    votes = [image.drawn_upright for image in others if image.drawn_upright is not None]
    upright = sum(votes)
    if votes and upright in (0, len(votes)):
        return bool(upright)
    return Undecided(sources, upright, len(votes) - upright, read_as)
