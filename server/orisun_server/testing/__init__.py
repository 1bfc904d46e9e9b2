"""A store for a test run: real PostgreSQL, NATS and server, started once, with a fresh boundary for each test."""
