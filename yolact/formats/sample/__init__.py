"""A small generated data set in VOC2012's format: scenes drawn by code, with exact masks.

It lets the whole pipeline run anywhere, without a download, on images whose annotations are right by construction.
Scenes (field, street, water, sky, room) hold drawings of eight VOC classes that vary in build, pose, size, colour and
texture, overlap, are cut by the image's edges, and stand among things of no class.

A scene is painted back to front. A drawing is a list of coloured outlines (`shapes`, `objects`), rendered oversampled
onto a small canvas of its own and textured (`layers`), and laid over the scene (`scenes`). Which layer shows at a pixel
gives the masks, so image and annotation cannot disagree.
"""

from yolact.formats.sample.writer import generate_sample

__all__ = ["generate_sample"]
