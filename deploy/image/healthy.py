"""Docker's health check: exits with 0 if the container is healthy, 1 if its server does not answer.

`yolact serve` takes its port from ``YOLACT_SERVE_PORT`` and answers 200 at ``/healthz``; MLflow's servers (`mlflow
server`, `mlflow models serve`) take theirs from ``MLFLOW_PORT`` and answer at ``/health``. A container without these
variables serves nothing and is healthy while it runs.
Kubernetes ignores Docker's health checks; the manifests in ``deploy/`` have probes.
"""

import os
import sys
import urllib.error
import urllib.request

CHECKS = {"YOLACT_SERVE_PORT": "/healthz", "MLFLOW_PORT": "/health"}

TIMEOUT = 4.0
"""Seconds; the Dockerfile allows 5."""


def main() -> int:
    """Return the exit code, see the module docstring."""
    checks = [(os.environ[name], path) for name, path in CHECKS.items() if os.environ.get(name)]
    if not checks:
        return 0
    [(port, path), *_] = checks
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for localhost
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, OSError, ValueError) as error:
        print(f"port {port}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
