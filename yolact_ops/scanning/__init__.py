"""Reading the images of a data set: in one task (preprocess), or in those of a loop (scan) for preprocess to merge."""
