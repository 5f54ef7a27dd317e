"""The graphs: which component feeds which, with what resources; compiled, run here, or sent to a cluster."""
