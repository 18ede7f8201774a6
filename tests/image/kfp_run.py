"""Run the pipeline through Kubeflow's local Docker runner, each step a container of the image: kfp_run.py ABOUT.json

about: params (a file), image, store, root (for what passes between the steps), user.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from docker.types import Mount, Ulimit
from kfp import local

from components.params import load_params
from pipelines.client import arguments
from pipelines.train_eval import build


def main() -> None:
    about = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    params = load_params(about["params"])
    local.init(
        local.DockerRunner(
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            user=about["user"],
            network_mode="none",
            environment={"SPLATCLIP_TRACKING": "off"},
            ulimits=[Ulimit(name="nofile", soft=1024, hard=4096), Ulimit(name="nproc", soft=4096, hard=4096)],
            tmpfs={"/tmp": "mode=1777"},
            mounts=[Mount(about["store"], about["store"], type="bind")],
        ),
        pipeline_root=about["root"],
    )
    build(params, about["image"], one_by_one=True)(store=about["store"], **arguments(params))


if __name__ == "__main__":
    main()
