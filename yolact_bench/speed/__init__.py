"""Measurements of speed and memory: `yolact bench`.

One module a measurement, each with a ``measure`` function that returns a dataclass: `inference` (a image's way to its
masks, stage by stage, also against other implementations), `training` (a training step, likewise) and `evaluation` (the
work on an evaluated image besides the network). What they share: `contestants` and, for training, `learners` (who takes
part), `timing`, `memory`, `machine`, `agreement` (do two contestants find the same), `calibration` (random weights that
find something) and `images`.
"""
