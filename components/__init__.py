"""The steps of the pipeline, one folder each."""
