"""PostgreSQL: the event log, group commit, reads, indexes, leases, the catalog of boundaries and migrations."""
