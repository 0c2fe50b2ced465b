"""What kube-controller-manager, kube-scheduler and the kubelets do, in one loop."""
