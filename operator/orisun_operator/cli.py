"""The command ``orisun-operator``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import click
import structlog

from .kube import Kube, KubeError
from .settings import PREFIX, OperatorSettings, load
from .uninstall import StillRunning, uninstall

_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  orisun-operator run                          in a pod, or with the current kubeconfig context
  ORISUN_OPERATOR_NAMESPACES=shop orisun-operator run
                                               look after one namespace
  orisun-operator settings                     every variable and what it means
""",
)
def main() -> None:
    """Look after OrisunClusters, Boundaries and EventIndexes of a Kubernetes cluster."""


@main.command()
def run() -> None:
    """Reconcile until SIGTERM; of several replicas the holder of the Lease does.

    The service account of the pod is used, or KUBECONFIG. /metrics and /healthz listen on the ports of
    ORISUN_OPERATOR_METRICS_PORT and ORISUN_OPERATOR_HEALTH_PORT. Ends with status 1 when the Lease is lost.
    """
    from .main import run as serve

    settings = _settings()
    _configure_logs(settings)
    try:
        asyncio.run(serve(settings))
    except KubeError as error:
        raise click.ClickException(str(error)) from None


@main.command("uninstall")
@click.option("--deployment", required=True, help="Deployment of the operator, in ORISUN_OPERATOR_NAMESPACE.")
@click.option("--timeout", default=120.0, show_default=True, help="Seconds that its pods may take to end.")
def uninstall_command(deployment: str, timeout: float) -> None:
    """Stop the operator and take its finalizers off, before it is uninstalled. No data is touched."""
    settings = _settings()

    async def work() -> int:
        kube = await Kube.connect()
        try:
            return await uninstall(
                kube, settings.namespaces, settings.namespace, deployment, timeout=timeout, say=click.echo
            )
        finally:
            await kube.close()

    try:
        count = asyncio.run(work())
    except (StillRunning, KubeError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{count} resources can be deleted without the operator now")


@main.command("settings")
def settings_command() -> None:
    """Show every variable with its value and meaning."""
    settings = _settings()
    for name, field in OperatorSettings.model_fields.items():
        value = getattr(settings, name)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        click.echo(f"{PREFIX}{name.upper()}={text}\n    {field.description}")


def _settings() -> OperatorSettings:
    try:
        return load(os.environ)
    except ValueError as error:
        raise click.ClickException(str(error)) from None


def _configure_logs(settings: OperatorSettings) -> None:
    renderer = structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    level = _LEVELS[settings.log_level]
    shared = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],  # type: ignore[list-item]
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # Kopf and the libraries below it
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,  # type: ignore[arg-type]
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    # its pools tell of every failed attempt with a traceback; whoever asked for a connection says so in a line
    logging.getLogger("asyncpg").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    main()
