"""How good detections are: COCO metrics, intervals of their differences, results per image."""
