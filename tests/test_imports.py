"""Who may import whom: read from the sources, so that the layering in docs/architecture.md stays true."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

COMPONENTS = ROOT / "components"
STAGES = {p.parent.name for p in COMPONENTS.glob("*/stage.py")}
STDLIB = set(sys.stdlib_module_names)
LEAN = {
    "config",
    "fields",
    "fleet_params",
    "manifest",
    "operations",
    "cluster_params",
    "hub_params",
    "url_params",
    "yaml_text",
    "params",
    "splats",
}  # standard library, NumPy, YAML, splat2d, and modules as lean
LEAN_NOUNS = LEAN | {"entries", "errors", "json_text", "store", "tar", "shards"}
HEAVY = {"torch", "open_clip", "mlflow", "kfp", "kubernetes", "torchvision", "minio", "rich", "numpy"}


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Dotted names a file imports; with top_level only those that run on import."""
    found: set[str] = set()

    def visit(node: ast.AST, type_checking: bool) -> None:
        for child in ast.iter_child_nodes(node):
            guarded = type_checking or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            if isinstance(child, ast.Import) and not (top_level and guarded):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module and not (top_level and guarded):
                assert child.level == 0, f"{path}: relative import of {child.module}"
                found.add(child.module)
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif top_level and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            visit(child, guarded)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def stage_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "components" and len(parts) > 1 and parts[1] in STAGES else None


OUTER = {"__main__.py", "commands.py", "evaluate.py", "runner.py"}  # what calls stages
OUTER |= {"kfp_base.py", "kfp_end.py", "kfp_workers.py"}
NOUNS = sorted(p for p in COMPONENTS.glob("*.py") if p.name not in OUTER)
STAGE_FILES = sorted(p for p in COMPONENTS.glob("*/*.py"))


def test_all_stages_are_seen() -> None:
    assert {"download", "train_teacher", "splat_fit", "train_adapter", "zero_shot_eval"} <= STAGES


@pytest.mark.parametrize("path", NOUNS, ids=lambda p: p.name)
def test_nouns_never_import_stages(path: Path) -> None:
    assert {stage_of(name) for name in imports(path)} == {None} or not imports(path)


@pytest.mark.parametrize("path", STAGE_FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_stage_imports_no_other_stage_and_no_kfp(path: Path) -> None:
    names = imports(path)
    assert {stage_of(name) for name in names} <= {None, path.parent.name}
    if path.name != "component.py":
        assert "kfp" not in roots(names)


@pytest.mark.parametrize("name", sorted(LEAN))
def test_lean_modules_stay_lean(name: str) -> None:
    names = imports(COMPONENTS / f"{name}.py")
    assert roots(names) <= STDLIB | {"numpy", "yaml", "splat2d", "components"}
    assert {name.split(".")[1] for name in names if name.startswith("components.")} <= LEAN_NOUNS


def test_one_module_of_the_components_speaks_to_kubernetes() -> None:
    users = {
        p.relative_to(COMPONENTS).as_posix() for p in COMPONENTS.rglob("*.py") if "kubernetes" in roots(imports(p))
    }
    assert users == {"splat_fit/cluster.py"}


def test_only_splats_and_splat_fit_know_the_kernels() -> None:
    users = {p.relative_to(COMPONENTS).as_posix() for p in COMPONENTS.rglob("*.py") if "splat2d" in roots(imports(p))}
    assert users <= {"splats.py", "splat_fit/stage.py", "splat_fit/shard.py"}


@pytest.mark.parametrize("path", sorted((ROOT / "kernels/splat2d").glob("*.py")), ids=lambda p: p.name)
def test_splat2d_knows_nothing_of_the_stages(path: Path) -> None:
    assert not roots(imports(path)) & {"components", "pipelines"}
    if path.name != "torch.py":
        assert "torch" not in roots(imports(path, top_level=True))


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.py")), ids=lambda p: p.name)
def test_pipelines_never_import_torch_or_a_stage(path: Path) -> None:
    assert "torch" not in roots(imports(path))
    assert not any(name.endswith(".stage") for name in imports(path))


@pytest.mark.parametrize("path", sorted((ROOT / "kernels/include/splat2d").glob("*.h")), ids=lambda p: p.name)
def test_headers_know_no_python(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "<pybind11" not in text
    assert "Python.h" not in text
    assert "<torch" not in text


def test_the_command_loads_nothing_heavy() -> None:
    code = "import components.__main__, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_only_two_modules_of_pipelines_know_kubernetes_and_few_its_api() -> None:
    found = {path.stem: roots(imports(path)) for path in (ROOT / "pipelines").glob("*.py")}
    assert {name for name, names in found.items() if "kubernetes" in names} == {"connection", "pods"}
    assert {name for name, names in found.items() if "kfp_server_api" in names} == {
        "api", "runs", "schedules", "versions"
    }  # fmt: skip


def test_the_commands_alone_know_pipelines_and_load_them_late() -> None:
    users = {path.name for path in COMPONENTS.rglob("*.py") if "pipelines" in roots(imports(path))}
    assert users <= {"commands.py", "pipeline_commands.py"}
    for name in users:
        assert "pipelines" not in roots(imports(COMPONENTS / name, top_level=True))
