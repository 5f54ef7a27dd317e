"""MLflow's monitor of the machine, logging through the run's journal."""

from __future__ import annotations

from collections.abc import Callable

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


class Monitor(SystemMetricsMonitor):
    """Measures as MLflow's monitor does, but neither asks the store for the run's status nor sends anything.

    Args:
        run_id: the run's id.
        tracking_uri: address of its store, which is asked for the last step if ``resume``.
        resume: count steps from the last one in the store; otherwise from 0.
        log_metrics: called with metrics by name, and their step.
    """

    def __init__(
        self, run_id: str, tracking_uri: str, *, resume: bool, log_metrics: Callable[[dict[str, float], int], None]
    ) -> None:
        super().__init__(run_id, resume_logging=resume, tracking_uri=tracking_uri)
        self._log_metrics = log_metrics

    def monitor(self) -> None:
        """Measure, wait and log, until `finish`."""
        while True:
            for _ in range(self.samples_before_logging):
                self.collect_metrics()
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        """Log metrics under ``system/``, with the node's name if MLflow has one."""
        prefix = self._metrics_prefix + (f"{self.node_id}/" if self.node_id else "")
        self._log_metrics({prefix + name: value for name, value in metrics.items()}, self._logging_step)
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()
