"""What the server shows of itself to machines: metrics (Prometheus, OTLP), traces (OTLP), profiles."""
