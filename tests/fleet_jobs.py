"""A small set and the Job that fits it: what the tests of a fleet share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fleets import PARAMS
from kube import Kube

from components.config import SplatFitParams
from components.fleet_params import FleetParams
from components.manifest import Artifact
from components.splat_fit import cluster, fleet

SECTION = SplatFitParams(**PARAMS)
FLEET = FleetParams(shards_per_index=2, parallelism=2, backoff=1, max_failed=0.5, template="")
ONE = replace(FLEET, shards_per_index=4)  # an index for all of it


def point_to(kube: Kube, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this the cluster that KUBECONFIG names, and waits short."""
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig(folder / "kubeconfig")))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(cluster, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(cluster, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(fleet, "PAUSE_S", 0.05)


def launch(images: Artifact, store: Path, params: FleetParams = FLEET, section: SplatFitParams = SECTION) -> Any:
    return fleet.fit(section, images=images.url, store=str(store), fleet=params)
