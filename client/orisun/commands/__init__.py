"""The commands of ``orisun`` that talk to a server, on nothing but the client library."""
