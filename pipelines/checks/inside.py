"""What a pod of the cluster reaches: MLflow, S3, the checkpoint volume, the GPU. Runs in the probe's pod.

Nothing here imports kfp or Kubernetes' client: kfp's executor, which runs this, leaves most of kfp out.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from pipelines.checks.finding import Finding, Level
from yolact.errors import YolactError
from yolact_ops.commands.secrets import read_secrets

PREFIX = "[probe] "
"""Start of the lines of the report. A line that is JSON and nothing else is lost when the log is archived: the server
(``CopyLogFromArchiveReader`` of Kubeflow Pipelines 2.17) takes it for a log entry, and shows its field ``log``."""

OWN = "`kubectl -n NAMESPACE apply -f deploy/pipelines/own-checkpoints.yaml`; see deploy/README.md, Volumes"


NOT_OWN = (
    "A StorageClass whose new volumes the tasks' user can write to: scratch.storage_class in pipelines/cluster.yaml"
)


def report(mount: str, folder: str, *, gpu: bool) -> None:
    """Print what was found, a line of JSON each, after `PREFIX`.

    Args:
        mount: where the checkpoint volume is mounted; empty for none.
        folder: ``s3://BUCKET/FOLDER`` to list; empty for all buckets.
        gpu: the pod has one.
    """
    read_secrets()
    scratch = os.environ.get("TMPDIR", "")  # set where the task has such a volume
    parts: list[tuple[str, Callable[[], Finding]]] = [
        ("MLflow", check_mlflow),
        ("S3", lambda: check_s3(folder)),
        *([("checkpoint volume", lambda: check_volume("checkpoint volume", mount, OWN))] if mount else []),
        *([("scratch volume", lambda: check_volume("scratch volume", scratch, NOT_OWN))] if scratch else []),
        *([("GPU", check_gpu)] if gpu else []),
    ]
    for what, part in parts:
        try:
            found = part()
        except Exception as error:  # whatever it is, the other parts matter too
            found = Finding(Level.FAILURE, f"{what} from a pod", f"{type(error).__name__}: {error}")
        print(f"{PREFIX}{json.dumps(found.to_json())}", flush=True)


def parse_report(lines: Iterable[str]) -> Iterator[Finding]:
    """The findings in the lines of a log, which may have others."""
    for line in lines:
        if line.startswith(PREFIX):
            with suppress(ValueError, TypeError, KeyError):  # another line that begins so
                fields = json.loads(line.removeprefix(PREFIX))
                yield Finding(**{**fields, "level": Level(fields["level"])})


def check_mlflow() -> Finding:
    """Whether the tracking server answers with the secret's address and login."""
    from yolact_ops.tracking.store import connect, shown_uri

    what = "MLflow from a pod"
    mend = (
        "Check the address in the secret (deploy/secrets/mlflow.env), and the server: "
        "`kubectl -n NAMESPACE get service,pod -l app.kubernetes.io/name=yolact-mlflow`"
    )
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return Finding(Level.FAILURE, what, "MLFLOW_TRACKING_URI is not set, so train and register will refuse", mend)
    try:
        connect()
    except YolactError as error:
        return Finding(Level.FAILURE, what, str(error).partition("\n")[0], mend)
    return Finding(Level.OK, what, f"{shown_uri()} answers")


def check_s3(folder: str) -> Finding:
    """Whether S3 answers and takes the keys."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    from yolact_ops.transfer.storage import S3Address, explain, make_client

    what, client = "S3 from a pod", make_client()
    address = S3Address.parse(folder) if folder else S3Address("", "")
    server = str(client.meta.endpoint_url)
    mend = "Check the keys and AWS_ENDPOINT_URL in the secret (deploy/secrets/s3.env), and that the bucket exists"
    try:
        if folder:
            client.list_objects_v2(Bucket=address.bucket, Prefix=address.key, MaxKeys=1)
            return Finding(Level.OK, what, f"{address} at {server} can be listed")
        names = ", ".join(bucket["Name"] for bucket in client.list_buckets()["Buckets"]) or "none"
        return Finding(Level.OK, what, f"{server} answers; buckets: {names}")
    except NoCredentialsError:
        text = "the pod has neither keys nor a role, so only data from elsewhere can be used"
        return Finding(Level.WARNING, what, text, mend)
    except ClientError as error:
        if not folder and error.response.get("Error", {}).get("Code") == "AccessDenied":
            text = f"{server} answers and knows the keys, which may not list all buckets"
            return Finding(Level.UNKNOWN, what, text, "Name a folder that they reach: --folder s3://BUCKET/FOLDER")
        return Finding(Level.FAILURE, what, explain(error, address, client), mend)
    except (BotoCoreError, OSError) as error:
        return Finding(Level.FAILURE, what, explain(error, address, client), mend)


def check_volume(volume: str, mount: str, mend: str) -> Finding:
    """Whether the task's user can write to a volume; ``mend`` says what to do if not."""
    what, user = f"{volume} from a pod", f"user {os.getuid()}"
    try:
        with tempfile.TemporaryFile(dir=mount) as file:
            file.write(b"written by the probe")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(mount).free
    except OSError as error:
        return Finding(Level.FAILURE, what, f"{user} cannot write to {mount} ({error.strerror})", mend)
    return Finding(Level.OK, what, f"{user} can write to {mount}, {free / 2**30:.1f} GiB free")


def check_gpu() -> Finding:
    """Whether PyTorch can use the GPU."""
    import torch

    what = "GPU from a pod"
    if not torch.cuda.is_available():
        text = f"PyTorch {torch.__version__} sees none: the node's driver is too old for it, or is not in the pod"
        return Finding(Level.FAILURE, what, text, "`kubectl describe node NODE`; on the node `nvidia-smi`")
    properties = torch.cuda.get_device_properties(0)
    torch.ones(1, device="cuda").add_(1).item()
    return Finding(Level.OK, what, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
