"""What controller-manager, scheduler, kubelets and cert-manager do, in one event loop."""
