"""Predict images and videos from anywhere with a model from anywhere, and write the results."""
