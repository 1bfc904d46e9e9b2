"""The administration's HTTP server: the page for people, metrics and probes for machines, profiles on a port apart."""
