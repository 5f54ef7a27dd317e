"""Sweeps: many trainings with different settings, on this machine through Optuna, on a cluster through Katib."""
