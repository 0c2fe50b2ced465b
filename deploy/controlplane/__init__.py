"""A real Kubernetes control plane, built from source and run without privileges."""
