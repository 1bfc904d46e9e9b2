"""The event store server: appends, reads and delivers events of boundaries kept in PostgreSQL."""

import os

# The server starts child processes, and grpc's handlers around fork() can hang a process that has servers or channels.
# Read when grpc is first used.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
