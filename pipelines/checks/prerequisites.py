"""What the pipelines need in Kubernetes: is it there, and as they need it?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import yaml

from components.train.trainjob_client import GROUP, RUNTIME, VERSION
from pipelines.checks.capacity import check_gpus, check_tasks, make_rooms
from pipelines.checks.finding import Finding, Level
from pipelines.checks.quota import check_quotas
from pipelines.config import PARALLEL_STEP, ClusterConfig, SecretConfig
from pipelines.image import check_image
from pipelines.servers.kube import CLUSTER_WIDE, RUN_LABEL, Kubernetes, KubernetesError, Object
from yolact.errors import SettingsError
from yolact_ops.lineage.code import ROOT, find_steps, installed_versions

ENFORCE = "pod-security.kubernetes.io/enforce"
"""Label of a namespace: the level of Pod Security that its pods must pass."""

NODE_IMAGES = 50
"""Images that a kubelet lists at most (its ``nodeStatusMaxImages``)."""

ARGO_SETTINGS = "workflow-controller-configmap"
"""ConfigMap with Argo's defaults for all workflows, in the installation's namespace."""

NEEDED = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "mlflow": ("MLFLOW_TRACKING_URI",),
    "git": ("GIT_USERNAME", "GIT_PASSWORD"),
}
"""By key of `ClusterConfig.secrets`: the keys without which a secret is of no use."""

WITHOUT = {
    "s3": "S3 is reached with the pod's own role, or not at all",
    "mlflow": "tracking and the registry do not work, unless Kubeflow's MLflow integration gives the address",
    "git": "private data repositories cannot be read",
}
"""By key of `ClusterConfig.secrets`: what is missing without the secret."""

OPEN_FOLDERS = r"rancher\.io/local-path|k8s\.io/minikube-hostpath|docker\.io/hostpath"
"""Provisioners whose folders have mode 777."""

WITHOUT_FS_GROUP = {
    r"host-?path|local-path": "on the node: `chown 10001:10001 FOLDER`, or mode 777",
    r"^efs\.csi": 'parameters `uid: "10001"` and `gid: "10001"` in a StorageClass of its own',
    r"^file\.csi\.azure|azure-file": "`mountOptions: [uid=10001, gid=10001]` in a StorageClass of its own",
    r"^nfs\.csi": 'parameter `mountPermissions: "0777"` in a StorageClass of its own',
    r"nfs": "on the server: `chown 10001:10001 FOLDER`",
}
"""Provisioners for whose volumes fsGroup, which own-checkpoints.yaml uses, does nothing; with the remedy."""


@dataclass(frozen=True)
class Prerequisites:
    """The objects in Kubernetes, and how the pipelines use them."""

    kubernetes: Kubernetes
    installation: Kubernetes
    """Access to the namespace in which Kubeflow Pipelines itself runs."""
    config: ClusterConfig
    service_account: str

    def check(self) -> Iterator[Finding]:
        """Examine them one after the other; what may not be read is a finding of its own."""
        parts: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
            (f"namespace {self._namespace}", self._check_namespace),
            (f"service account {self.service_account}", self._check_account),
            *((f"secret {one.name}", partial(self._check_secret, key, one)) for key, one in self._used_secrets()),
            *((f"secret {name}", partial(self._check_pull_secret, name)) for name in self.config.image_pull_secrets),
            ("checkpoint volume", self._check_claim),
            *([("Kubeflow Trainer", self._check_trainer)] if self._nodes > 1 else []),
            *([("TrainJobs", self._check_trainjobs)] if self._nodes > 1 else []),
            ("quota", self._check_quota),
            ("nodes", self._check_nodes),
            ("Argo's retries", self._check_argo),
        ]
        for what, part in parts:
            try:
                yield from part()
            except KubernetesError as error:
                yield without_right(what, error, self._namespace)
        yield self._check_code()

    @property
    def _namespace(self) -> str:
        return self.kubernetes.namespace

    @property
    def _nodes(self) -> int:
        """Nodes that train together."""
        return self.config.for_step(PARALLEL_STEP).nodes

    def _check_trainer(self) -> Iterator[Finding]:
        """Whether a TrainJob can be made of the runtime; the role of the tasks' account is not looked at."""
        what, access = "Kubeflow Trainer", self.kubernetes
        get = access.custom.get_namespaced_custom_object
        arguments = (GROUP, VERSION, self._namespace, "trainingruntimes", RUNTIME)
        apply = f"`kubectl -n {self._namespace} apply -k deploy/train`"
        if access.find(f"get trainingruntimes.{GROUP}", get, *arguments) is None:
            yield Finding(
                Level.FAILURE,
                what,
                f"is not installed, or namespace {self._namespace} has no TrainingRuntime {RUNTIME}, which "
                f"tasks.{PARALLEL_STEP}.nodes: {self._nodes} needs",
                f"Install the Trainer, 2.2 or later (https://www.kubeflow.org/docs/components/trainer/), then {apply}",
            )
        else:
            yield Finding(Level.OK, what, f"has the TrainingRuntime {RUNTIME}")

    def _check_trainjobs(self) -> Iterator[Finding]:
        """TrainJobs that no task follows: a task that is stopped may have no time to delete its own."""
        what, access = "TrainJobs", self.kubernetes
        left = 0
        for found in access.trainjobs(RUN_LABEL):
            name, run_id = found["metadata"]["name"], found["metadata"]["labels"][RUN_LABEL]
            if not any(pod.get("status", {}).get("phase") in ("Pending", "Running") for pod in access.pods(run_id)):
                left += 1
                yield Finding(
                    Level.WARNING,
                    what,
                    f"no pod of run {run_id} follows TrainJob {name}: the run was stopped, or tries again later",
                    f"If it was stopped: `kubectl -n {self._namespace} delete trainjob {name}`",
                )
        if not left:
            yield Finding(Level.OK, what, "none without a task that follows it")

    def _check_namespace(self) -> Iterator[Finding]:
        what, name = f"namespace {self._namespace}", self._namespace
        found = self.kubernetes.find("get namespaces", self.kubernetes.core.read_namespace, name)
        if found is None:
            yield Finding(Level.FAILURE, what, "does not exist", f"Another --namespace, or `kubectl create ns {name}`")
            return
        level = found["metadata"].get("labels", {}).get(ENFORCE)
        text = f"enforces Pod Security {level}" if level else "has no label that enforces a level of Pod Security"
        yield Finding(Level.OK, what, f"{text}; the tasks pass every level")

    def _check_account(self) -> Iterator[Finding]:
        name = self.service_account
        read = self.kubernetes.core.read_namespaced_service_account
        if self.kubernetes.find("get serviceaccounts", read, name, self._namespace) is None:
            yield Finding(
                Level.FAILURE,
                f"service account {name}",
                "does not exist, so no pod can start",
                f"`kubectl -n {self._namespace} apply -f deploy/pipelines/account.yaml`, then "
                "--service-account yolact-pipelines; or name another one",
            )
        else:
            yield Finding(Level.OK, f"service account {name}", "exists")

    def _used_secrets(self) -> list[tuple[str, SecretConfig]]:
        used = {key for step in find_steps() for key in self.config.for_step(step).secrets}
        return [(key, secret) for key, secret in self.config.secrets.items() if key in used]

    def _check_secret(self, key: str, secret: SecretConfig) -> Iterator[Finding]:
        what = f"secret {secret.name}"
        found = self.kubernetes.find(
            "get secrets", self.kubernetes.core.read_namespaced_secret, secret.name, self._namespace
        )
        file = f"deploy/secrets/{key}.env"
        template = f" (template: {file}.example)" if (ROOT / f"{file}.example").is_file() else ""
        make = f"`kubectl -n {self._namespace} create secret generic {secret.name} --from-env-file={file}`{template}"
        steps = ", ".join(step for step in find_steps() if key in self.config.for_step(step).secrets)
        if found is None and secret.optional:
            without = WITHOUT.get(key, "they run without its values")
            yield Finding(Level.WARNING, what, f"does not exist. In {steps}, {without}", make)
            return
        if found is None:
            yield Finding(Level.FAILURE, what, f"does not exist; the pods of {steps} wait for it", make)
            return
        filled = {name for name, value in (found.get("data") or {}).items() if value}
        again = f"`kubectl -n {self._namespace} delete secret {secret.name}`, then {make}"
        lacking = [name for name in NEEDED.get(key, ()) if name in secret.keys and name not in filled]
        if lacking:
            text = f"has no {' and no '.join(lacking)}: {WITHOUT[key]}"
            yield Finding(Level.WARNING, what, text, again)
        elif unused := sorted(filled - set(secret.keys)):
            text = f"has {', '.join(unused)}, which no task reads; there are: {', '.join(secret.keys)}"
            add = f"Add it to secrets.{key}.keys in pipelines/cluster.yaml, or correct its name: {again}"
            yield Finding(Level.WARNING, what, text, add)
        else:
            yield Finding(Level.OK, what, f"has {', '.join(name for name in secret.keys if name in filled)}")

    def _check_pull_secret(self, name: str) -> Iterator[Finding]:
        read = self.kubernetes.core.read_namespaced_secret
        if self.kubernetes.find("get secrets", read, name, self._namespace) is None:
            yield Finding(
                Level.FAILURE,
                f"secret {name}",
                "does not exist; image_pull_secrets names it",
                f"`kubectl -n {self._namespace} create secret docker-registry {name} --docker-server=REGISTRY "
                "--docker-username=USER --docker-password=PASSWORD`",
            )
        else:
            yield Finding(Level.OK, f"secret {name}", "exists")

    def _check_claim(self) -> Iterator[Finding]:
        claim = self.config.checkpoints.claim
        if not claim:
            yield Finding(
                Level.WARNING,
                "checkpoint volume",
                "none (checkpoints.claim): a training that is tried again begins anew",
                "Let it copy its checkpoints to S3: -S runtime.checkpoint_mirror=s3://BUCKET/FOLDER",
            )
            return
        what = f"volume claim {claim}"
        kube = f"kubectl -n {self._namespace}"
        found = self.kubernetes.find(
            "get persistentvolumeclaims",
            self.kubernetes.core.read_namespaced_persistent_volume_claim,
            claim,
            self._namespace,
        )
        if found is None:
            text = "does not exist; the pod of train waits for it"
            yield Finding(Level.FAILURE, what, text, f"`{kube} apply -f deploy/pipelines/checkpoints.yaml`")
            return
        name = found["spec"].get("storageClassName", "")
        storage, unread = None, None
        if name:
            try:
                storage = self.kubernetes.find("get storageclasses", self.kubernetes.storage.read_storage_class, name)
            except KubernetesError as error:
                unread = error
        yield self._judge_phase(what, found, storage)
        if unread is not None:
            yield without_right(f"{what}, who may write", unread, self._namespace)
        else:
            yield _judge_owner(f"{what}, who may write", storage, kube)

    def _judge_phase(self, what: str, claim: Object, storage: Object | None) -> Finding:
        phase = claim.get("status", {}).get("phase", "Pending")
        modes = claim["spec"]["accessModes"]
        is_shared = "ReadWriteMany" in modes
        one_node = "" if is_shared else "; simultaneous trainings on two nodes need ReadWriteMany"
        text = f"{', '.join(modes)}, StorageClass {claim['spec'].get('storageClassName') or 'none'}{one_node}"
        if self._nodes > 1 and not is_shared:
            return Finding(
                Level.FAILURE,
                what,
                f"{', '.join(modes)}: tasks.{PARALLEL_STEP}.nodes: {self._nodes} needs one that all nodes can mount",
                "A claim with accessModes [ReadWriteMany], of a StorageClass that has them: -C checkpoints.claim=NAME",
            )
        if phase == "Bound":
            return Finding(Level.OK, what, f"bound, {text}")
        if phase == "Pending" and (storage or {}).get("volumeBindingMode") == "WaitForFirstConsumer":
            return Finding(Level.OK, what, f"will be bound when train's pod starts, {text}")
        return Finding(
            Level.FAILURE,
            what,
            f"is {phase}, not bound; the pod of train waits for it ({text})",
            f"Its events say why: `kubectl -n {self._namespace} describe pvc {claim['metadata']['name']}`",
        )

    def _check_quota(self) -> Iterator[Finding]:
        access, core = self.kubernetes, self.kubernetes.core
        quotas = access.get("list resourcequotas", core.list_namespaced_resource_quota, self._namespace)["items"]
        ranges = access.get("list limitranges", core.list_namespaced_limit_range, self._namespace)["items"]
        yield from check_quotas(self.config, find_steps(), self._namespace, quotas, ranges)

    def _check_nodes(self) -> Iterator[Finding]:
        core = self.kubernetes.core
        nodes = self.kubernetes.get("list nodes", core.list_node)["items"]
        steps = find_steps()
        yield self._check_image(nodes)
        pods = None
        try:
            running = "status.phase!=Succeeded,status.phase!=Failed"
            right = "list pods of all namespaces"
            pods = self.kubernetes.get(right, core.list_pod_for_all_namespaces, field_selector=running)["items"]
        except KubernetesError as error:
            yield without_right("free nodes", error, self._namespace)
        rooms = make_rooms(nodes, pods)
        yield from check_gpus(self.config, steps, rooms)
        yield from check_tasks(self.config, steps, rooms)

    def _check_image(self, nodes: list[Object]) -> Finding:
        image, policy = self.config.image, self.config.image_pull_policy
        what, name = f"image {image}", full_name(image)
        images = [
            [known for one in node["status"].get("images", []) for known in one.get("names") or []] for node in nodes
        ]
        count = sum(name in known for known in images)
        push = "Push it to a registry that the nodes reach: `docker push`, then -C image=REGISTRY/NAME:TAG"
        load = "on a local cluster `kind load docker-image` or `minikube image load`"
        if count == len(nodes) and policy != "Always":
            return Finding(Level.OK, what, "is on all nodes" if count > 1 else "is on the node")
        if count and policy == "Never":
            return Finding(
                Level.WARNING, what, f"is on {count} of {len(nodes)} nodes, and image_pull_policy is Never", push
            )
        if count and policy == "IfNotPresent" and not _has_registry(image):
            return Finding(
                Level.WARNING, what, f"is on {count} of {len(nodes)} nodes; others cannot pull it", f"{push}; {load}"
            )
        lists_all = all(len(node["status"].get("images", [])) < NODE_IMAGES for node in nodes)
        if not count and lists_all and (policy == "Never" or not _has_registry(image)):
            why = "image_pull_policy is Never" if policy == "Never" else "its name has no registry"
            return Finding(Level.FAILURE, what, f"is on no node, and {why}", f"{push}; {load}")
        there = f"is on {count} of {len(nodes)} nodes. " if count else ""
        return Finding(
            Level.UNKNOWN,
            what,
            f"{there}Whether a node can pull it is known when one does (a local Docker has other credentials)",
            "`python -m pipelines check --deep`",
        )

    def _check_code(self) -> Finding:
        """Whether the image has this checkout's code."""
        what = f"code in {self.config.image}"
        try:
            unknown = check_image(self.config.image, installed_versions())
        except SettingsError as error:
            return Finding(Level.FAILURE, what, "is not that of this checkout", str(error))
        if unknown:
            return Finding(Level.UNKNOWN, what, f"{unknown}; each task compares it when it starts")
        return Finding(Level.OK, what, "is that of this checkout")

    def _check_argo(self) -> Iterator[Finding]:
        access, what = self.installation, "Argo's retries"
        try:
            found = access.find(
                "get configmaps", access.core.read_namespaced_config_map, ARGO_SETTINGS, access.namespace
            )
        except KubernetesError as error:
            yield without_right(what, error, access.namespace)
            return
        if found is None:
            text = f"there is no ConfigMap {ARGO_SETTINGS} in the namespace {access.namespace}"
            yield Finding(Level.UNKNOWN, what, text, f"`kubectl get configmap -A | grep {ARGO_SETTINGS}`")
            return
        defaults = yaml.safe_load((found.get("data") or {}).get("workflowDefaults") or "{}") or {}
        strategy = ((defaults.get("spec") or {}).get("templateDefaults") or {}).get("retryStrategy") or {}
        policy = strategy.get("retryPolicy") or "OnFailure"  # Argo's own default
        again = {
            "Always": "a task is tried again whatever ended it",
            "OnFailure": "a task that failed is tried again, a deleted pod or a lost node is not",
            "OnError": "a deleted pod or a lost node is tried again, a task that failed (memory, time limit) is not",
        }.get(policy, "a task that failed is not tried again")
        mend = (
            "`python -m pipelines submit --wait --retries 3`, or `retry RUN`. For the whole cluster: `kubectl -n "
            f"{access.namespace} patch configmap {ARGO_SETTINGS} --patch-file deploy/pipelines/argo-retries.yaml`, "
            "whose head says what that costs"
        )
        is_ok = policy == "Always"
        text = f"policy {policy}: {again}"
        yield Finding(Level.OK if is_ok else Level.WARNING, what, text, "" if is_ok else mend)


def full_name(image: str) -> str:
    """An image's name as a node lists it: with registry and tag."""
    if "@" not in image and ":" not in image.rpartition("/")[2]:
        image = f"{image}:latest"
    if _has_registry(image):
        return image
    return f"docker.io/{image}" if "/" in image else f"docker.io/library/{image}"


def _has_registry(image: str) -> bool:
    first, slash, _ = image.partition("/")
    return bool(slash) and (first == "localhost" or "." in first or ":" in first)


def _judge_owner(what: str, storage: Object | None, kube: str) -> Finding:
    """Whether user 10001 may write, as far as the StorageClass tells."""
    own = f"`{kube} apply -f deploy/pipelines/own-checkpoints.yaml` makes it writable; `check --deep` tries"
    if storage is None:
        return Finding(Level.UNKNOWN, what, "only a pod can tell (a volume without a StorageClass)", own)
    provisioner = storage["provisioner"]
    if re.search(OPEN_FOLDERS, provisioner):
        return Finding(Level.OK, what, f"everybody ({provisioner})")
    given = {str(value).split("=")[-1] for value in (storage.get("parameters") or {}).values()}
    given |= {option.split("=")[-1] for option in storage.get("mountOptions") or []}
    for pattern, remedy in WITHOUT_FS_GROUP.items():
        if re.search(pattern, provisioner) and not given & {"10001", "0777"}:
            return Finding(
                Level.WARNING,
                what,
                f"fsGroup does nothing on volumes of {provisioner}, so user 10001 may not be able to write",
                f"`check --deep` tries. Remedy: {remedy} (deploy/README.md, Volumes)",
            )
    return Finding(Level.UNKNOWN, what, f"only a pod can tell ({provisioner}); a new volume often belongs to root", own)


def without_right(what: str, error: KubernetesError, namespace: str) -> Finding:
    """What could not be examined, with the command that asks for the right."""
    mend = ""
    if error.right:
        mend = f"Ask an administrator, or let one run this check. The right: `{_can_i(error.right, namespace)}`"
    return Finding(Level.UNKNOWN, what, str(error), mend)


def _can_i(right: str, namespace: str) -> str:
    verb, _, resource = right.partition(" ")
    resource, _, everywhere = resource.partition(" of ")
    where = "" if right in CLUSTER_WIDE else f" -n {namespace}"
    return f"kubectl auth can-i {verb} {resource}{' --all-namespaces' if everywhere else where}"
