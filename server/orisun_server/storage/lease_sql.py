"""The statements of leases, each complete in itself and autocommitted.

Why they are right when any number of servers execute them at once:

- A node lives for as long as its row is there. It moves its ``expires_at`` on only while that has not passed, and a row
  is deleted only after it has; both take the row's lock and look again after waiting for it. So a node whose row was
  deleted can never come back, and its heartbeat says so.
- A lease is taken from a node only when, in one snapshot, the lease names the node and the node's row is missing or
  deleted by this very statement. The row of a node is there before its first lease, so missing means gone for good.
- Taking compares the epoch with that of the snapshot once the lease's row is locked. Somebody who was faster has grown
  it, so the slower one takes nothing.
- Rows are locked with SKIP LOCKED or inserted in order of their keys, so these statements never wait in a circle.
"""

from __future__ import annotations

from dataclasses import dataclass

from .names import quote

# nodes whose time has passed, deleted here and now; a heartbeat under way keeps its row
_REAP = """
expired AS MATERIALIZED (
    SELECT node_id FROM {schema}.orisun_node WHERE expires_at <= clock_timestamp() FOR UPDATE SKIP LOCKED
),
dead AS (
    DELETE FROM {schema}.orisun_node AS n USING expired AS e WHERE n.node_id = e.node_id RETURNING n.node_id
),
alive AS MATERIALIZED (
    SELECT node_id FROM {schema}.orisun_node AS n WHERE NOT EXISTS (SELECT FROM dead AS d WHERE d.node_id = n.node_id)
)
"""

# $1 node, $2 lifetime in seconds, $3 kind of node
_JOIN = """
INSERT INTO {schema}.orisun_node (node_id, kind, expires_at)
VALUES ($1, $3, clock_timestamp() + make_interval(secs => $2))
"""

# $1 node, $2 lifetime in seconds; the row is missing when the node's time has passed
_RENEW = """
UPDATE {schema}.orisun_node SET expires_at = clock_timestamp() + make_interval(secs => $2)
WHERE node_id = $1 AND expires_at > clock_timestamp() RETURNING node_id
"""

# $1 node; frees everything that it holds
_LEAVE = "DELETE FROM {schema}.orisun_node WHERE node_id = $1"

# $1 node, $2 kind, $3 boundaries, $4 name, $5 tokens of the boundaries, $6 at most so many. A lease that names this
# node is free: the caller asks for none that it holds, so it gave it back just now or never got the answer.
_ACQUIRE = (
    "WITH "
    + _REAP
    + """,
me AS (SELECT FROM alive WHERE node_id = $1),
wanted AS MATERIALIZED (
    SELECT b.boundary, b.token, s.epoch FROM unnest($3::text[], $5::bigint[]) AS b (boundary, token)
    LEFT JOIN {schema}.orisun_lease AS s ON s.kind = $2 AND s.boundary = b.boundary AND s.name = $4
    WHERE EXISTS (SELECT FROM me)
      AND (s.node_id IS NULL OR s.node_id = $1 OR NOT EXISTS (SELECT FROM alive AS a WHERE a.node_id = s.node_id))
    ORDER BY md5(b.boundary || $1) LIMIT $6
),
locked AS MATERIALIZED (
    SELECT l.boundary, w.token FROM {schema}.orisun_lease AS l JOIN wanted AS w ON w.boundary = l.boundary
    WHERE l.kind = $2 AND l.name = $4 AND l.epoch = w.epoch
    FOR UPDATE OF l SKIP LOCKED
),
taken AS (
    UPDATE {schema}.orisun_lease AS l
    SET node_id = $1, epoch = l.epoch + 1, token = k.token, acquired_at = clock_timestamp()
    FROM locked AS k WHERE l.kind = $2 AND l.boundary = k.boundary AND l.name = $4
    RETURNING l.boundary, l.epoch, l.token
),
fresh AS (
    INSERT INTO {schema}.orisun_lease (kind, boundary, name, node_id, token)
    SELECT $2, boundary, $4, $1, token FROM wanted WHERE epoch IS NULL ORDER BY boundary
    ON CONFLICT DO NOTHING RETURNING boundary, epoch, token
)
SELECT boundary, epoch, token FROM taken UNION ALL SELECT boundary, epoch, token FROM fresh
"""
)

# $1 node, $2 kind, $3 boundary, $4 name, $5 token
_RELEASE = """
UPDATE {schema}.orisun_lease SET node_id = ''
WHERE node_id = $1 AND kind = $2 AND boundary = $3 AND name = $4 AND token = $5
"""

# $1 node, $2 tokens in use, $3 the last token given out when $2 was taken: gives back what was taken or released by a
# statement whose answer was lost
_SWEEP = """
UPDATE {schema}.orisun_lease SET node_id = '' WHERE node_id = $1 AND token <= $3 AND token <> ALL ($2::bigint[])
"""

# $1 kind, $2 boundaries: those for which no living node holds the lease without a name
_FREE = """
SELECT b.boundary FROM unnest($2::text[]) AS b (boundary) WHERE NOT EXISTS (
    SELECT FROM {schema}.orisun_lease AS l JOIN {schema}.orisun_node AS n USING (node_id)
    WHERE l.kind = $1 AND l.boundary = b.boundary AND l.name = '' AND n.expires_at > clock_timestamp()
) ORDER BY 1
"""

# $1 kind of node
_LIVE_NODES = "SELECT count(*) FROM {schema}.orisun_node WHERE kind = $1 AND expires_at > clock_timestamp()"

# $1 kinds, $2 seconds: leases with names come and go without end; those that nobody holds for that long go
_FORGET = """
DELETE FROM {schema}.orisun_lease AS l
WHERE l.kind = ANY ($1::text[]) AND l.name <> '' AND l.acquired_at < clock_timestamp() - make_interval(secs => $2)
  AND NOT EXISTS (SELECT FROM {schema}.orisun_node AS n WHERE n.node_id = l.node_id)
"""


@dataclass(frozen=True)
class LeaseSql:
    """The statements, for one admin schema."""

    join: str
    renew: str
    leave: str
    acquire: str
    release: str
    sweep: str
    free: str
    live_nodes: str
    forget: str

    @classmethod
    def for_schema(cls, admin_schema: str) -> LeaseSql:
        """The statements over the tables of that schema."""
        texts = (_JOIN, _RENEW, _LEAVE, _ACQUIRE, _RELEASE, _SWEEP, _FREE, _LIVE_NODES, _FORGET)
        return cls(*(text.replace("{schema}", quote(admin_schema)) for text in texts))
