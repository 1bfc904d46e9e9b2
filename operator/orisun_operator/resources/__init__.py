"""Kubernetes objects as pure functions of a spec: no clock, no network, no randomness."""
