"""Kubernetes.

Reading order: driver; offers, nodes, gpus; order, pod, options; listing, pod_state, events; connection, channel, exits, websocket; login, rights, errors, objects.
"""

from __future__ import annotations

from prefect_gpu.blocks.kubernetes import KubernetesCredentials
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.kubernetes.driver import Kubernetes

tasks = TaskLibrary(Kubernetes, KubernetesCredentials)
