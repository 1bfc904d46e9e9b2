"""From the event log to subscribers: publishers, streams, live tails, catch-up subscriptions, pub/sub."""
