"""The event store server: appends, reads and delivers events of boundaries kept in PostgreSQL."""
