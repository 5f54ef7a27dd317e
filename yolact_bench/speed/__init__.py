"""Measurements of speed and memory: `yolact bench`.

One module per measurement, each with a ``measure`` function that returns a dataclass: `inference` (from images to
masks), `training` (a training step), `loading` (the training data loader) and `evaluation` (masks and run lengths of an
evaluated image, without the network).

Shared: `backends` and `training_backends` (this project or another implementation), `external`
(calls into another implementation's file), `rounds` (backends timed in alternating rounds), `process` (one for each
backend), `memory`, `agreement` (of two backends' detections), `calibration` (random weights that find objects) and
`images`.
"""
