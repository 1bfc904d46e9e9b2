"""What the server itself writes into the admin boundary: who did what, when and from where. Pure.

Events of administration are both the audit log and what users, sign-in and tokens are projected from. None holds a
password, a token, or a hash of one. Types that begin with ``orisun.`` are the server's: it takes them from no client.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from .criteria import Query, query
from .event import NewEvent
from .users import Caller

#: How the types of the server's own events begin.
PREFIX = "orisun."

USER_CREATED = PREFIX + "UserCreated"
USER_DELETED = PREFIX + "UserDeleted"
USER_ROLES_CHANGED = PREFIX + "UserRolesChanged"
PASSWORD_CHANGED = PREFIX + "PasswordChanged"
TOKEN_CREATED = PREFIX + "TokenCreated"
TOKEN_REVOKED = PREFIX + "TokenRevoked"
BOUNDARY_CREATED = PREFIX + "BoundaryCreated"
INDEX_CREATED = PREFIX + "IndexCreated"
INDEX_DROPPED = PREFIX + "IndexDropped"
PROFILE_TAKEN = PREFIX + "ProfileTaken"
#: A call that a role was missing for; ``count`` of them when there were more in the same minute.
CALL_DENIED = PREFIX + "CallDenied"
#: A password that was not the user's; ``count`` as above.
LOGIN_FAILED = PREFIX + "LoginFailed"
#: Denied calls and failed logins that were too many to be written one by one.
DENIALS_OMITTED = PREFIX + "DenialsOmitted"

#: What users and tokens are made of.
ACCOUNT_TYPES = (USER_CREATED, USER_DELETED, USER_ROLES_CHANGED, PASSWORD_CHANGED, TOKEN_CREATED, TOKEN_REVOKED)
#: Everything that the audit log shows, by type.
TYPES = (
    *ACCOUNT_TYPES,
    BOUNDARY_CREATED,
    INDEX_CREATED,
    INDEX_DROPPED,
    PROFILE_TAKEN,
    CALL_DENIED,
    LOGIN_FAILED,
    DENIALS_OMITTED,
)

#: The server itself, as the author of the first administrator.
SERVER = Caller("", "orisun", frozenset(), 0, via="server")


def of_types(types: tuple[str, ...]) -> Query:
    """The query for events of any of these types."""
    return query([[("eventType", event_type)] for event_type in types])


def event(event_type: str, by: Caller, data: Mapping[str, Any], *, event_id: str = "") -> NewEvent:
    """An event of the audit log. ``data`` tells what, and metadata who (``username``, ``user_id``), how authenticated
    (``via``) and from where (``peer``)."""
    who = {"username": by.username, "user_id": by.user_id, "via": by.via, "peer": by.peer}
    return NewEvent(event_id or str(uuid.uuid4()), event_type, json.dumps(data), json.dumps(who))
