"""What Kubeflow shows of `merge`: how many objects were found, and of which classes."""

from __future__ import annotations

from components.merge.step import Totals
from yolact.files import write_text_atomic
from yolact_ops.commands.task import Artifact, MetricsArtifact, markdown_table


def describe(totals: Totals, metrics: MetricsArtifact, summary: Artifact) -> None:
    """Log the counts, and write the objects by class into ``summary`` as Markdown."""
    for name, value in (("images", totals.images), ("objects", totals.objects), ("not_readable", totals.problems)):
        metrics.log_metric(name, value)
    rows = [(name, str(count)) for name, count in totals.per_class.items()]
    write_text_atomic(summary.path, f"# {totals.images} images\n\n{markdown_table(('class', 'objects'), rows)}")
