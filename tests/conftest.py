"""What the tests share."""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faults import ForkServer, Row
    from kube import Kube
    from kubeflow import Kubeflow
    from manifests import Object
    from worlds import World

    from components.manifest import Artifact
    from components.store import Store
    from pipelines.api import Api

ROOT = Path(__file__).resolve().parent.parent
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts background jobs; the tests mean a terminal
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: more threads than cores wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["SPLATCLIP_TRACKING"] = (
    "off"  # for the tests' own processes and those they start; tests of tracking turn it on
)
# kfp asks for the whole stack at every setting of a task, to name its caller: without each frame's lines of source,
# for which every module that is loaded here is searched, a graph compiles in a quarter of the time.
inspect.stack = functools.partial(inspect.stack, 0)


# The files that take longest, first: else one of them runs by itself at the end, and the other cores wait.
LONG = (
    "test_image",
    "test_faults_kill",
    "test_faults_disk",
    "test_splat2d_cuda_planted",
    "test_clip_benchmark",
    "test_whole_sets",
    "test_benchmark_gpu",
    "test_adapter_steps",
    "test_run",
    "test_kill_resume",
    "test_distributed",
    "test_same_numbers",
    "test_k8s",
    "test_registry_many",
    "test_pipeline_local",
    "test_fleet",
    "test_fleet_cluster",
    "test_fleet_interrupted",
    "test_tracking",
    "test_pipeline",
    "test_splat2d_cuda",
    "test_faults_tar",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of LONG first, file by file."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures (cifar10, flickr8k-1k, kodak); tests that want them skip where it is missing."""
    folder = Path(os.environ.get("SPLATCLIP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real pictures at {folder}; set SPLATCLIP_TEST_DATA (it holds cifar10, flickr8k-1k, kodak)")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A store with what an evaluation of classes is made from."""
    from worlds import make_world  # loads torch

    return make_world(tmp_path_factory.mktemp("classes"), captions=False)


@pytest.fixture(scope="module")
def scored(world: World) -> Artifact:
    """Its evaluation."""
    return world.run()


@pytest.fixture
def kube() -> Iterator[Kube]:
    """A stand-in of a Kubernetes cluster."""
    from kube import a_cluster

    with a_cluster() as made:
        yield made


@pytest.fixture
def here(tmp_path: Path, kube: Kube, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, with the cluster as what KUBECONFIG names; nothing waits long."""
    from fleet_jobs import point_to

    point_to(kube, tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubeflow]:
    """A stand-in of Kubeflow Pipelines, which the environment names."""
    from kfp_worlds import no_cluster
    from kubeflow_server import kubeflow

    no_cluster(monkeypatch, tmp_path)
    with kubeflow() as state:
        monkeypatch.setenv("SPLATCLIP_KFP_HOST", state.url)
        yield state


@pytest.fixture
def api(server: Kubeflow) -> Api:
    """A connection to it."""
    from pipelines.api import Api
    from pipelines.connection import Connection

    return Api(Connection(server.url, said="--host"))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server on this machine, which the environment names."""
    from s3 import moto_server

    with moto_server() as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store, in a folder and on S3."""
    from s3 import new_bucket

    from components.store import open_store

    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    request.getfixturevalue("endpoint")
    return open_store(f"{new_bucket()}/some/store")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ForkServer]]:
    """A fork server for each stage, started when it is first asked for."""
    from contextlib import ExitStack

    from fault_worlds import STAGE_MODULES
    from faults import ForkServer

    started: dict[str, ForkServer] = {}
    with ExitStack() as stack:

        def server(stage: str) -> ForkServer:
            if stage not in started:
                made = ForkServer(tmp_path_factory.mktemp("server"), STAGE_MODULES[stage])
                started[stage] = stack.enter_context(made)
            return started[stage]

        yield server


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Object]]:
    """What kustomize makes of k8s/, by kustomization."""
    import shutil

    from kustomized import Rendered

    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here: kustomizations cannot be built")
    return Rendered(tmp_path_factory.mktemp("k8s") / "k8s")


@pytest.fixture
def fault_row(record_property: Callable[[str, object], None]) -> Row:
    """Say what a fault test did: a line of the table at the end of the run."""

    def told(row: str, what: str, count: int, seed: int | None = None, detail: str = "") -> None:
        record_property("fault", [row, what, count, seed, detail])

    return told


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The fault tests' table: what was done to what, how often, with which seed, and how it ended."""
    rows: list[tuple[Any, ...]] = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            given = [value for name, value in getattr(report, "user_properties", []) if name == "fault"]
            if given:
                rows += [(*value, outcome) for value in given]
            elif outcome == "failed" and "test_faults_" in report.nodeid:
                rows.append((report.nodeid, "", 0, None, "see above", outcome))
    if not rows:
        return
    single = Counter(
        (row, what, outcome) for row, what, count, seed, detail, outcome in rows if (count, detail) == (1, "")
    )
    rows = [row for row in rows if (row[2], row[4]) != (1, "")]
    rows += [(row, what, count, None, "", outcome) for (row, what, outcome), count in single.items()]
    terminalreporter.section("faults")
    for row, what, count, seed, detail, outcome in sorted(rows, key=str):
        seeded = f"seed {seed}" if seed is not None else ""
        terminalreporter.write_line(f"{row:18} {what:16} {count:5} {outcome:7} {seeded:16} {detail}")
