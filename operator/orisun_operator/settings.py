"""What the operator was told: every ORISUN_OPERATOR_* variable, once."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

PREFIX = "ORISUN_OPERATOR_"


def _names(value: object) -> object:
    return tuple(filter(None, (part.strip() for part in value.split(",")))) if isinstance(value, str) else value


def _version() -> str:
    return importlib.metadata.version("orisun")


class OperatorSettings(BaseModel):
    """Immutable; durations are seconds. A field is its variable in lower case without ORISUN_OPERATOR_."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespaces: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="Namespaces to look after, comma-separated; empty for all of the cluster"
    )
    namespace: str = Field("orisun-system", description="The operator's own namespace, which holds its Lease")
    lease_name: str = Field("orisun-operator", description="Name of the Lease that the one active replica holds")
    lease_duration: Annotated[float, Field(ge=5)] = Field(
        15.0, description="Seconds after which the Lease of a dead replica is free"
    )
    server_image: str = Field(
        default_factory=lambda: f"orisun:{_version()}", description="Image of clusters that name none"
    )
    nats_image: str = Field(
        default_factory=lambda: f"orisun-nats:{_version()}", description="Image of NATS in clusters that name none"
    )
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = Field(
        "", description="For clusters that name none; empty leaves it to Kubernetes"
    )
    cluster_domain: str = Field("cluster.local", description="DNS domain of the Kubernetes cluster")
    timer: Annotated[float, Field(ge=1)] = Field(60.0, description="Seconds after which each resource is looked at")
    workers: Annotated[int, Field(ge=1)] = Field(8, description="Resources reconciled at once")
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(8080, description="Port of /metrics; 0 for none")
    health_port: Annotated[int, Field(ge=0, le=65535)] = Field(8081, description="Port of /healthz; 0 for none")
    log_level: Literal["DEBUG", "INFO", "WARN", "ERROR"] = Field("INFO", description="How much to log")
    log_format: Literal["json", "console"] = Field("json", description="For machines or for people")


def load(environment: Mapping[str, str] | None = None) -> OperatorSettings:
    """Read the environment. Raises ValueError that names the variable and says what is wrong with it."""
    environment = os.environ if environment is None else environment
    fields = OperatorSettings.model_fields
    given = {name: environment[PREFIX + name.upper()] for name in fields if environment.get(PREFIX + name.upper())}
    try:
        return OperatorSettings.model_validate(given)
    except ValidationError as error:
        problems = [
            f"{PREFIX}{str(problem['loc'][0]).upper()}={problem['input']!r}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise ValueError("; ".join(problems)) from None
