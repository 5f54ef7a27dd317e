"""MLflow runs: the store, the run of a step, logging through a journal, stored evaluations."""
