"""The domain, pure: positions, events, criteria, matching and the append decision. No I/O, no gRPC, no SQL driver."""
