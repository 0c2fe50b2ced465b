//go:build tools

// Package kwok names the command that plays the kubelets; it has a module of its own because it needs other versions of
// the Kubernetes libraries than the control plane does.
package kwok

import _ "sigs.k8s.io/kwok/cmd/kwok"
