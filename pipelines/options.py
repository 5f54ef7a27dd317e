"""Options that several commands share, each defined once, as a field of a dataclass.

A command has a parameter of that dataclass type, and `expand` turns the fields into options.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from pipelines.config import CLUSTER, ClusterConfig, load_cluster
from yolact.errors import SettingsError
from yolact_ops.settings.params import Params
from yolact_ops.settings.presets import PARAMS, choose

if TYPE_CHECKING:
    from pipelines.servers.connection import Connection

IN_CLUSTER_HOST = "http://ml-pipeline-ui.kubeflow.svc.cluster.local"
"""Address of Kubeflow Pipelines from within the cluster (kubeflow.org, "Connect the SDK to the API")."""

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where Kubeflow mounts a token for Pipelines in a pod that requests one."""

TOKEN_OPTIONS = ("token", "token_file", "token_command")
"""Parameters of which one gives the token."""

T = TypeVar("T")

Pipeline = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="A pipeline of this project, or a compiled one's file (.yaml).")
]

ServiceAccount = Annotated[str | None, typer.Option(help="Kubernetes service account that the tasks run as.")]


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter whose type is a dataclass by the dataclass's fields, as options for Typer."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if isinstance(kind, type) and is_dataclass(kind):
            groups[parameter.name] = kind
            annotations = get_type_hints(kind, include_extras=True)
            parameters += [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=annotations[field.name],
                )
                for field in fields(kind)
            ]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))

    @functools.wraps(command)
    def expanded(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    del expanded.__wrapped__  # its signature is no longer the command's
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _prefer_command_line(context: typer.Context, parameter: typer.CallbackParam, value: T) -> T | None:
    """Let one of the options for a token, given on the command line, override environment variables of the others.

    Click processes the command line first.
    """
    sources = {name: context.get_parameter_source(name) for name in TOKEN_OPTIONS}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if value is None or not given - {parameter.name}:
        return value
    if parameter.name in given:
        raise typer.BadParameter("--token, --token-file and --token-command: give one of them")
    return None


@dataclass(frozen=True)
class ServerOptions:
    """The Kubeflow Pipelines server, and the credentials for it."""

    host: Annotated[
        str | None,
        typer.Option(
            envvar="KF_PIPELINES_ENDPOINT",
            help="Address of Kubeflow Pipelines: https://HOST/pipeline in Kubeflow, or of its own web interface.",
            show_default=False,
        ),
    ] = None
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            envvar="KF_PIPELINES_NAMESPACE",
            help="Your namespace on a multi-user cluster.",
        ),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            "--existing-token",
            envvar="KF_PIPELINES_TOKEN",
            callback=_prefer_command_line,
            help="Bearer token. Better in the variable or in a file: all users of a machine can see command lines.",
            show_default=False,
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="KF_PIPELINES_SA_TOKEN_PATH",
            callback=_prefer_command_line,
            exists=True,
            dir_okay=False,
            readable=True,
            help="File with a token, such as a service account's; read for each request.",
            show_default=False,
        ),
    ] = None
    token_command: Annotated[
        str | None,
        typer.Option(
            envvar="KF_PIPELINES_TOKEN_COMMAND",
            callback=_prefer_command_line,
            help="Command that prints a token, run anew every five minutes, without a shell.",
            show_default=False,
        ),
    ] = None
    cookie: Annotated[
        str | None,
        typer.Option(
            envvar="KF_PIPELINES_COOKIE",
            help="Session cookie of a browser, for a login page, NAME=VALUE; better in the variable.",
            show_default=False,
        ),
    ] = None
    ssl_ca_cert: Annotated[
        Path | None,
        typer.Option(
            "--ssl-ca-cert",
            envvar="SSL_CERT_FILE",
            exists=True,
            dir_okay=False,
            help="CA certificates to trust, PEM, for a server whose certificate no public authority signed.",
            show_default=False,
        ),
    ] = None
    ui_host: Annotated[
        str | None,
        typer.Option(
            envvar="KF_PIPELINES_UI_ENDPOINT", help="Address of the web interface, if not --host.", show_default=False
        ),
    ] = None

    def connection(self) -> Connection:
        """The server's address and the credentials; sends nothing yet.

        Raises:
            SettingsError: no address was given, and this does not run in a pod.
        """
        from pipelines.servers.connection import IN_POD_NAMESPACE, Connection

        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns about each retry
        host, token_file = self.host, self.token_file
        if not host and IN_POD_NAMESPACE.exists():
            host = IN_CLUSTER_HOST
        if not host:
            raise SettingsError(
                "no server given. Give --host ADDRESS, or set KF_PIPELINES_ENDPOINT. Without a public address: "
                "`kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80`, then --host http://127.0.0.1:8080"
            )
        if not (self.token or token_file or self.token_command or self.cookie) and os.access(
            SERVICE_ACCOUNT_TOKEN, os.R_OK
        ):
            token_file = SERVICE_ACCOUNT_TOKEN
        return Connection(
            host,
            self.namespace,
            self.token,
            token_file,
            self.token_command,
            self.cookie,
            self.ssl_ca_cert,
            self.ui_host,
        )


@dataclass(frozen=True)
class SettingsOptions:
    """The settings of the steps."""

    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Settings of this preset; `yolact preset list` lists them.")
    ] = None
    params: Annotated[Path, typer.Option(metavar="FILE", help="Settings file, if no preset is named.")] = PARAMS
    overrides: Annotated[
        list[str] | None,
        typer.Option("-S", "--set-param", metavar="KEY=VALUE", help="Change a setting, as in `dvc exp run -S`."),
    ] = None

    @property
    def are_given(self) -> bool:
        """Whether a preset or a changed setting was given."""
        return bool(self.preset or self.overrides)

    def read(self) -> Params:
        """The checked settings.

        Raises:
            SettingsError: see `yolact_ops.settings.presets.choose`.
        """
        return choose(self.preset, self.params, self.overrides or [])


@dataclass(frozen=True)
class ClusterOptions:
    """Where and how the tasks run."""

    cluster_file: Annotated[
        Path,
        typer.Option(
            "--cluster",
            metavar="FILE",
            help="File with image, resources, secrets and volumes.",
            show_default="pipelines/cluster.yaml of the project",
        ),
    ] = CLUSTER
    cluster_changes: Annotated[
        list[str] | None,
        typer.Option("-C", "--set-cluster", metavar="KEY=VALUE", help="Change a key of it, as tasks.train.gpus=0."),
    ] = None

    @property
    def are_given(self) -> bool:
        """Whether another file or a change was given."""
        return bool(self.cluster_changes) or self.cluster_file != CLUSTER

    def load(self) -> ClusterConfig:
        """The checked settings.

        Raises:
            SettingsError: see `pipelines.config.load_cluster`.
        """
        return load_cluster(self.cluster_file, self.cluster_changes or [])


@dataclass(frozen=True)
class JobOptions:
    """How a pipeline runs on a server, besides the settings of the steps."""

    experiment: Annotated[str, typer.Option(help="Kubeflow's folder for runs; created if missing.")] = "yolact"
    arguments: Annotated[
        list[str] | None,
        typer.Option(
            "-A", "--argument", metavar="NAME=VALUE", help="A parameter of the pipeline, besides the settings."
        ),
    ] = None
    enable_caching: Annotated[
        bool | None,
        typer.Option(
            "--enable-caching/--no-enable-caching",
            help="Cache on or off for all tasks; by default as compiled.",
            show_default=False,
        ),
    ] = None
    pipeline_root: Annotated[
        str | None, typer.Option(help="Folder in the object store for the tasks' outputs, as s3://bucket/folder.")
    ] = None
    service_account: ServiceAccount = None
