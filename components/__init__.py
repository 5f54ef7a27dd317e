"""The steps of the pipeline, one folder each.

A step may import PyTorch before its work begins, and that fixes how computing threads wait: so it is chosen here.
"""

from yolact_ops.commands.container import wait_briefly

wait_briefly()
