"""Benchmarks and checks that use the library but are not part of it: `yolact` does not import this package.

- `speed`: benchmarks (`yolact bench`).
- `parity`: comparison with stored results of the published implementation (`yolact parity`).
- `studies`: scripts that each answer one question.
- `published_ap`: average precision as the published implementation computes it.
"""
