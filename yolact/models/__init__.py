"""The network's parts, and its weights: ours, the published ones, initial ones."""
