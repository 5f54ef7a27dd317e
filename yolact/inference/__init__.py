"""Images in, detections out: the predictor, the network made ready for it, postprocessing, export."""
