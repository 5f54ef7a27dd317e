"""Scripts that each answer one question; run them as ``python -m yolact_bench.studies.NAME``.

They run several pipeline steps or train for a long time, which is too much for `yolact bench`. docs/benchmarks.md has
their results.
"""
