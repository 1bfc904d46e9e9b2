"""What the parts below the store can do by themselves: PostgreSQL, the gRPC transport, NATS's client."""
