"""A reverse proxy before the cluster of the sandbox that injects faults into its API."""
