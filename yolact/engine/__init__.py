"""Training: the loop and its parts, checkpoints, several processes, and fitting anchors to a data set."""
