"""Docker's health check: exits with 0 if the container is healthy, 1 if its server does not answer.

MLflow's servers (`mlflow models serve`, `mlflow server`) take their port from ``MLFLOW_PORT``, and answer 200 at
``/health`` when they are ready. A container without that variable serves nothing and is healthy while it runs.
Kubernetes ignores Docker's health checks; the manifests in ``deploy/`` have probes.
"""

import os
import sys
import urllib.error
import urllib.request

TIMEOUT = 4.0
"""Seconds; the Dockerfile allows 5."""


def main() -> int:
    """Return the exit code, see the module docstring."""
    port = os.environ.get("MLFLOW_PORT")
    if not port:
        return 0
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for localhost
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=TIMEOUT) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, OSError, ValueError) as error:
        print(f"port {port}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
