"""Scripts that answer one question each; run them as ``python -m yolact_bench.studies.NAME``.

They send data through several steps or train for long, which is too much for `yolact bench`. docs/benchmarks.md has
their results.
"""
