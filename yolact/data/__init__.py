"""Training data: COCO instances read, augmented and collated into batches."""
