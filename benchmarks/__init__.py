"""What the store can do on this machine, each thing next to its floor. ``make bench`` runs it; README.md says how."""

import os

# Read once, when grpc is first used: its handler of fork() may wait forever for its own threads, and children are
# started here while its client is connected.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
