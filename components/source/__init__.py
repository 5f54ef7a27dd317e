"""Names the data: which revision it is, and by what a change of it is seen."""
