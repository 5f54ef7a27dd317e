"""Annotated data sets as people have them: one module per format, the checks, the generated sample."""
