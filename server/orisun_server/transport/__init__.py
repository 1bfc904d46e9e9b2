"""gRPC: servicers of plain functions, authentication and roles, errors as statuses, health, reflection, TLS."""
