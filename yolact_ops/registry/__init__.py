"""The model registry: versions and their files, the champion with its history, lineage.

What MLflow's registry lacks is here: a lock, a record of decisions, and one way to change the champion (`champion`).
"""
