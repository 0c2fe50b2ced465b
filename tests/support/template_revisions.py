"""Revisions of the templates: a later one that adds objects to n8n, and an earlier one without its credentials."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from activities.service_templates.registry import ServiceTemplateRegistry
from tests.support.instance_fixture import TEMPLATES_FOLDER

WORKER = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: worker
data:
  CONCURRENCY: "5"
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: queue
spec:
  accessModes: [ReadWriteOnce]
  resources:
    requests:
      storage: {{ volumes.queue }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: worker
spec:
  replicas: 1
  selector:
    matchLabels:
      app.kubernetes.io/name: worker
  template:
    metadata:
      labels:
        app.kubernetes.io/name: worker
    spec:
      serviceAccountName: instance
      automountServiceAccountToken: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 1000
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: worker
          image: {{ images.app }}
          envFrom:
            - configMapRef: {name: worker}
            - secretRef: {name: worker}
          resources:
            requests: {cpu: {{ components.worker.requests.cpu }}, memory: {{ components.worker.requests.memory }}}
            limits: {cpu: {{ components.worker.limits.cpu }}, memory: {{ components.worker.limits.memory }}}
          securityContext:
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: queue, mountPath: /queue}
      volumes:
        - name: queue
          persistentVolumeClaim: {claimName: queue}
---
apiVersion: batch/v1
kind: CronJob
metadata:
  name: compact
spec:
  schedule: "0 3 * * *"
  jobTemplate:
    spec:
      template:
        metadata:
          labels:
            app.kubernetes.io/name: compact
        spec:
          restartPolicy: Never
          serviceAccountName: instance
          securityContext:
            runAsNonRoot: true
            runAsUser: 1000
            seccompProfile: {type: RuntimeDefault}
          containers:
            - name: compact
              image: {{ images.app }}
              command: [n8n, prune]
              securityContext:
                allowPrivilegeEscalation: false
                capabilities: {drop: [ALL]}
"""

CHANGES = {
    "  app: {cpu_percent: 65, memory_percent: 65}\n": (
        "  app: {cpu_percent: 55, memory_percent: 55}\n  worker: {cpu_percent: 10, memory_percent: 10}\n"
    ),
    "  backups: {percent: 30, minimum_gib: 1}\n": (
        "  backups: {percent: 30, minimum_gib: 1}\n  queue: {percent: 0, minimum_gib: 2}\n"
    ),
    "secrets:\n": ("secrets:\n  worker:\n    token: {length: 32, alphabet: hex}\n    operator: {customer: email}\n"),
}

ADDED_OBJECTS = {
    ("ConfigMap", "worker"),
    ("CronJob", "compact"),
    ("Deployment", "worker"),
    ("PersistentVolumeClaim", "queue"),
    ("Secret", "worker"),
}


def earlier_revision(directory: Path) -> ServiceTemplateRegistry:
    """Write the templates of an earlier release into ``directory``: n8n has no credentials and no owner."""
    folder = directory / "services"
    shutil.copytree(TEMPLATES_FOLDER, folder)
    service, app = folder / "n8n" / "service.yaml", folder / "n8n" / "30-app.yaml.j2"
    _remove(service, r"^(?:    owner-|credentials:).*\n", count=4)
    _remove(app, r"^ +- \{name: N8N_INSTANCE_OWNER.*\n", count=1)
    _remove(app, r"^ +- name: N8N_INSTANCE_OWNER.*\n +valueFrom:\n +secretKeyRef: .*\n", count=2)
    return ServiceTemplateRegistry(folder)


def _remove(file: Path, pattern: str, *, count: int) -> None:
    document, removed = re.subn(pattern, "", file.read_text(), flags=re.MULTILINE)
    assert removed == count
    file.write_text(document)


def later_revision(directory: Path) -> ServiceTemplateRegistry:
    """Write the templates of a later release into ``directory``: n8n has a worker with its own settings and volume."""
    folder = directory / "services"
    shutil.copytree(TEMPLATES_FOLDER, folder)
    (folder / "n8n" / "50-worker.yaml.j2").write_text(WORKER)
    file = folder / "n8n" / "service.yaml"
    document = file.read_text()
    for before, after in CHANGES.items():
        assert document.count(before) == 1
        document = document.replace(before, after)
    file.write_text(document)
    return ServiceTemplateRegistry(folder)
