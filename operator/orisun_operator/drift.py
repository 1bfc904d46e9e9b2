"""Whether an object in the cluster is as it was last applied: the comparison that saves every needless write.

Server-side apply says who owns which field (``metadata.managedFields``). An object has drifted when a field that we
apply has another value, or when somebody else has set a field of its spec or data. Pure functions.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from .api import FIELD_MANAGER, PREFIX

#: Tells which desired state an object was last brought to, so that fields no longer wanted are noticed too.
APPLIED_ANNOTATION = f"{PREFIX}applied"
#: Parts of an object that others may write as they like: their labels, their status.
_OTHERS = frozenset({"f:metadata", "f:status"})
_QUANTITY = re.compile(r"^([+-]?\d+(?:\.\d*)?)(m|[kMGTPE]i?|[numµ]|e[+-]?\d+)?$")
_FACTORS: Mapping[str, Decimal] = {
    "": Decimal(1),
    **{"n": Decimal("1e-9"), "u": Decimal("1e-6"), "µ": Decimal("1e-6"), "m": Decimal("1e-3")},
    **{suffix: Decimal(1000) ** (power + 1) for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"))},
    **{f"{suffix}i": Decimal(1024) ** (power + 1) for power, suffix in enumerate(("K", "M", "G", "T", "P", "E"))},
}


def stamped(desired: Mapping[str, Any]) -> dict[str, Any]:
    """The object to apply: the desired one with its own fingerprint as an annotation."""
    stamped = copy.deepcopy(dict(desired))
    annotations = stamped.setdefault("metadata", {}).setdefault("annotations", {})
    annotations.pop(APPLIED_ANNOTATION, None)
    # ``kubectl describe`` shows annotations: of a password that somebody chose not even a digest is for everybody
    text = json.dumps(_without_secrets(stamped), sort_keys=True, separators=(",", ":"))
    annotations[APPLIED_ANNOTATION] = base64.b32encode(hashlib.sha256(text.encode()).digest())[:26].decode().lower()
    return stamped


def _without_secrets(obj: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a Secret its keys, without what they hold."""
    return {**obj, "data": dict.fromkeys(obj.get("data") or (), True)} if obj["kind"] == "Secret" else obj


def was_applied(applied: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether ``live`` was last brought to exactly this (stamped) state by us."""
    stamp: object = applied["metadata"]["annotations"][APPLIED_ANNOTATION]
    return (live.get("metadata", {}).get("annotations") or {}).get(APPLIED_ANNOTATION) == stamp


def contains(desired: Any, live: Any) -> bool:
    """Whether every field of ``desired`` is in ``live``; what the API server adds (defaults) is not looked at."""
    if isinstance(desired, Mapping):
        if not desired:
            return live is None or isinstance(live, Mapping)
        return isinstance(live, Mapping) and all(contains(value, live.get(key)) for key, value in desired.items())
    if isinstance(desired, list):
        if not desired:
            return not live
        return isinstance(live, list) and len(live) == len(desired) and all(map(contains, desired, live))
    if desired is None or desired == "":
        return live is None or live == ""
    if desired == live and isinstance(desired, bool) == isinstance(live, bool):
        return True
    return _same_quantity(desired, live)


def foreign_fields(live: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Manager to the fields (fieldsV1) of spec or data that it has set on an object of ours."""
    found: dict[str, dict[str, Any]] = {}
    for entry in live.get("metadata", {}).get("managedFields") or ():
        if entry.get("manager") == FIELD_MANAGER or entry.get("subresource"):
            continue
        fields = {key: value for key, value in (entry.get("fieldsV1") or {}).items() if key not in _OTHERS}
        if fields:
            manager = str(entry.get("manager", "somebody"))
            found[manager] = _union(found.get(manager, {}), fields)
    return found


def adopted(live: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``managedFields`` in which what others set in spec or data is ours: the next apply then takes it away.

    The same step moves an object from client-side to server-side apply (Kubernetes, "Migration of managers").
    """
    ours: dict[str, Any] = {}
    kept: list[dict[str, Any]] = []
    for entry in copy.deepcopy(live.get("metadata", {}).get("managedFields") or []):
        fields = entry.get("fieldsV1") or {}
        if entry.get("subresource"):
            kept.append(entry)
            continue
        if entry.get("manager") == FIELD_MANAGER:
            ours = _union(ours, fields)
            continue
        ours = _union(ours, {key: value for key, value in fields.items() if key not in _OTHERS})
        entry["fieldsV1"] = {key: value for key, value in fields.items() if key in _OTHERS}
        if entry["fieldsV1"]:
            kept.append(entry)
    apply = {
        "manager": FIELD_MANAGER,
        "operation": "Apply",
        "apiVersion": live["apiVersion"],
        "fieldsType": "FieldsV1",
        "fieldsV1": ours,
    }
    return [apply, *kept]


def repaired(desired: Mapping[str, Any], live: Mapping[str, Any], foreign: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that others (``foreign``, of foreign_fields) have changed since we applied the same state.

    What a Secret's keys hold is no part of that state: where it differs, and nobody has set it, we mean to change it;
    and what somebody has set, and we want now too, is taken over.
    """
    others = [path for fields in foreign.values() for path in field_paths(fields)]
    if desired["kind"] == "Secret":
        wanted, there = desired.get("data") or {}, live.get("data") or {}
        taken = {f"data.{key}" for key, value in wanted.items() if there.get(key) == value}
        others = [path for path in others if path not in taken]
    mine = drifted_paths(_without_secrets(desired), _without_secrets(live))
    return tuple(dict.fromkeys([*mine, *others]))


def drifted_paths(desired: Any, live: Any, path: str = "") -> Iterator[str]:
    """The fields that differ, for a message; never their values, which may be secret."""
    if contains(desired, live):
        return
    if isinstance(desired, Mapping) and isinstance(live, Mapping):
        for key, value in desired.items():
            yield from drifted_paths(value, live.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(desired, list) and isinstance(live, list) and len(desired) == len(live):
        for index, (one, other) in enumerate(zip(desired, live, strict=True)):
            yield from drifted_paths(one, other, f"{path}[{index}]")
    else:
        yield path


def field_paths(fields: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The leaves of a fieldsV1, for a message."""
    for key, below in fields.items():
        if key == ".":
            continue
        name = key.partition(":")[2]
        if key.startswith("k:"):
            name = "[" + ",".join(str(value) for value in json.loads(name).values()) + "]"
        here = path + name if name.startswith("[") or not path else f"{path}.{name}"
        if any(inner != "." for inner in below):
            yield from field_paths(below, here)
        else:
            yield here


def _union(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in other.items():
        one[key] = _union(one.get(key, {}), value)
    return one


def _same_quantity(one: object, other: object) -> bool:
    """Whether two numbers or texts are the same quantity: the API server writes 0.5 as 500m."""
    if isinstance(one, bool) or isinstance(other, bool):
        return False
    quantities = [quantity(value) for value in (one, other)]
    return quantities[0] is not None and quantities[0] == quantities[1]


def quantity(value: object) -> Decimal | None:
    """A number or a Kubernetes quantity such as 500m or 2Gi; None for anything else."""
    if isinstance(value, int | float):
        return Decimal(str(value))
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    if match is None:
        return None
    number, suffix = match.groups()
    if suffix and suffix.startswith("e"):
        return Decimal(number + suffix)
    return Decimal(number) * _FACTORS[suffix or ""]
