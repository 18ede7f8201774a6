#!/bin/sh
# Part of the Dockerfile: into the environment $1, what the project needs to run, as requirements.lock pins it.
set -eu
python3 -m venv --without-pip "$1"
python3 -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["dependencies"], sep="\n")
' > /tmp/needs.txt
install="python3 -m pip --python $1/bin/python install --quiet --constraint requirements.lock"
if [ -n "${TORCH_INDEX_URL:-}" ]; then
  $install --no-deps --index-url "$TORCH_INDEX_URL" torch torchvision
fi
$install --requirement /tmp/needs.txt
python3 -m pip --python "$1/bin/python" check
.ci/image/settle.sh "" "$1"
