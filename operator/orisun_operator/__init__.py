"""The operator: three resources (OrisunCluster, Boundary, EventIndex) become a running store on Kubernetes."""
