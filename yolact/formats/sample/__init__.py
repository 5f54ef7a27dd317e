"""A small synthetic data set in VOC2012's format: procedurally drawn scenes with exact masks.

It lets the whole pipeline run anywhere, without a download, on images whose annotations are correct by construction.
Scenes (field, street, water, sky, room) contain drawings of eight VOC classes that vary in build, pose, size, colour
and texture, overlap, are cut off by the image's edges, and appear among clutter without a class.

A scene is painted back to front. A drawing is a list of coloured outlines (`shapes`, `objects`), rendered with
oversampling onto its own small canvas, textured (`layers`), and composited onto the scene (`scenes`). The topmost layer
at each pixel gives the masks, so image and annotation cannot disagree.
"""

from yolact.formats.sample.writer import generate_sample

__all__ = ["generate_sample"]
