"""``python -m pipelines check``: what a cluster lacks, and the command that mends it."""
