"""YOLACT and YOLACT++: network, training, evaluation and inference, without any pipeline."""
