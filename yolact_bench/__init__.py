"""Measurements and proofs that use the library and are no part of it: `yolact` does not import this package.

- `speed`: benchmarks (`yolact bench`).
- `parity`: comparison with what the published implementation computed (`yolact parity`).
- `studies`: scripts for single questions.
- `published_ap`: average precision as the published implementation computes it.
"""
