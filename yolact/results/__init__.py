"""Detections as files, in the formats that people and tools read: one writer per format (`registry`)."""
