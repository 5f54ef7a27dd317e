"""Identify the data: its revision, and a fingerprint that shows changes."""
