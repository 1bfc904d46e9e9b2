"""Typed specs and statuses of the three kinds, and conditions. Pure: nothing here talks to anything."""

GROUP = "orisun.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
#: Begins every annotation of ours.
PREFIX = "orisun.io/"
#: The field manager of everything that the operator writes.
FIELD_MANAGER = "orisun-operator"
