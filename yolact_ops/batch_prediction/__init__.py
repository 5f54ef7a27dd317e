"""The files that the steps of a batch prediction (split, predict, merge) pass to each other."""
