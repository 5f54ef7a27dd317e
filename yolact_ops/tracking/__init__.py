"""MLflow runs: the store, which run a step works on, logging through a journal, stored evaluations."""
