"""What may not be used anywhere: pickle and its kin, shells, unchecked certificates. `make lint` refuses it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from faults import Row

RUFF = Path(sys.executable).with_name("ruff")
PLANTED = {  # code that does it -> the rule that must find it
    "import pickle": "TID251",
    "from pickle import loads": "TID251",
    "import cloudpickle": "TID251",
    "import dill": "TID251",
    "import jsonpickle": "TID251",
    "import joblib\njoblib.load('x')": "TID251",
    "from joblib import load": "TID251",
    "import marshal": "TID251",
    "import shelve": "TID251",
    "import pandas as pd\npd.read_pickle('x')": "TID251",
    "import torch\ntorch.load('x')": "TID251",
    "import torch\ntorch.load('x', weights_only=False)": "TID251",
    "from torch import load": "TID251",
    "import torch\ntorch.save({}, 'x')": "TID251",
    "import torch\ntorch.jit.load('x')": "TID251",
    "import torch\ntorch.hub.load('x', 'y')": "TID251",
    "import yaml\nyaml.load('x', Loader=yaml.Loader)": "S506",
    "import yaml\nyaml.load('x', Loader=yaml.SafeLoader)": "TID251",
    "import yaml\nyaml.unsafe_load('x')": "TID251",
    "import yaml\nyaml.full_load('x')": "TID251",
    "from yaml import UnsafeLoader": "TID251",
    "eval('1')": "S307",
    "exec('1')": "S102",
    "import os\nos.system('ls')": "S605",
    "from os import system": "TID251",
    "import os\nos.popen('ls')": "S605",
    "import subprocess\nsubprocess.run('ls', shell=True, check=True)": "S602",
    "import subprocess\nsubprocess.getoutput('ls')": "TID251",
    "import requests\nrequests.get('https://a.example', verify=False, timeout=1)": "S501",
    "import requests\nrequests.get('https://a.example')": "S113",
    "import ssl\nssl._create_unverified_context()": "S323",
    "import ssl\nMODE = ssl.CERT_NONE": "TID251",
    "import tempfile\ntempfile.mktemp()": "S306",
    "import tarfile\ntarfile.open('x').extractall('y')": "S202",
    "import hashlib\nhashlib.md5(b'x')": "S324",
    "eval('1')  # noqa": "PGH004",
}
KEYWORDS = {  # arguments that no rule of ruff's knows, whatever is called -> values that they may have
    "allow_pickle": (False,),
    "weights_only": (True,),
    "shell": (False,),
    "verify": (True,),
    "verify_ssl": (True,),
    "cert_check": (True,),
    "ssl": (True,),
    "check_hostname": (True,),
}
PLANTED_KEYWORDS = [
    "np.load('x', allow_pickle=True)",
    "np.load('x', allow_pickle=chosen)",
    "read('x', weights_only=False)",
    "Minio('x', cert_check=False)",
    "session.get('x', ssl=False)",
    "session.verify = False",
    "context.check_hostname = False",
    "call('x', **{'shell': True})",
]


def found_rules(place: str, code: str) -> set[str]:
    """The rules that a file of ours with this code breaks."""
    done = subprocess.run(
        [RUFF, "check", "--config", ROOT / "pyproject.toml", "--output-format", "json", "--stdin-filename", place, "-"],
        input=code + "\n", capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode in {0, 1}, done.stderr
    return {one["code"] for one in json.loads(done.stdout)}


@pytest.mark.faults
def test_each_planted_violation_is_refused(tmp_path: Path, fault_row: Row) -> None:
    """One file each, outside the project: nothing but the configuration decides."""
    for number, code in enumerate(PLANTED):
        (tmp_path / f"planted_{number}.py").write_text(code + "\n")
    command = [RUFF, "check", "--no-cache", "--config", ROOT / "pyproject.toml", "--output-format", "json", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    broken: dict[str, set[str]] = {}
    for one in json.loads(done.stdout):
        broken.setdefault(Path(one["filename"]).name, set()).add(one["code"])
    for number, (code, rule) in enumerate(PLANTED.items()):
        assert rule in broken.get(f"planted_{number}.py", set()), f"ruff lets this through: {code}"
    fault_row("deserialising", "planted bans", len(PLANTED), None, "each refused by lint")


@pytest.mark.parametrize("folder", ["components/download", "pipelines", "kernels/splat2d", "benchmarks", "tests"])
def test_no_folder_is_exempt(folder: str) -> None:
    codes = [code for code in PLANTED if "noqa" not in code]
    rules = found_rules(f"{folder}/planted.py", "\n".join(codes))
    assert rules >= {PLANTED[code] for code in codes}
    assert not found_rules(f"{folder}/planted.py", '"""A module without any of it."""')


def unfit(tree: ast.AST) -> Iterator[int]:
    """Lines that give an argument or attribute of KEYWORDS another value than it may have."""

    def allowed(name: str, value: ast.expr) -> bool:
        return name not in KEYWORDS or (isinstance(value, ast.Constant) and value.value in KEYWORDS[name])

    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = [(one.arg, one.value) for one in node.keywords]
            for name, value in given:
                spread = value if name is None and isinstance(value, ast.Dict) else ast.Dict([], [])
                inner = zip(spread.keys, spread.values, strict=True)
                pairs = [(key.value, one) for key, one in inner if isinstance(key, ast.Constant)]
                if not all(allowed(str(key), one) for key, one in [(name, value), *pairs]):
                    yield node.lineno
        elif isinstance(node, ast.Assign):
            names = [target.attr for target in node.targets if isinstance(target, ast.Attribute)]
            if not all(allowed(name, node.value) for name in names):
                yield node.lineno


@pytest.mark.parametrize("code", PLANTED_KEYWORDS)
def test_planted_arguments_are_found(code: str) -> None:
    assert list(unfit(ast.parse(code))) == [1]


def test_no_file_gives_such_arguments() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    files = listed.split()
    assert len(files) > 200
    broken = [f"{file}:{line}" for file in files for line in unfit(ast.parse((ROOT / file).read_text("utf-8")))]
    assert broken == []


def test_exceptions_name_their_rule_and_none_is_of_these() -> None:
    """A `noqa` may not excuse what is banned, but for one test that writes what open_clip's users have."""
    banned = {*PLANTED.values()} - {"PGH004"}
    excused = {"tests/test_bans.py", "tests/test_openclip.py"}
    listed = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for file in sorted(set(listed.split()) - excused):
        for line in (ROOT / file).read_text("utf-8").splitlines():
            words = line.partition("# noqa:")[2].replace(",", " ").split()
            assert not banned & set(words), f"{file}: {line.strip()}"
