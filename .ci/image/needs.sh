#!/bin/sh
# Part of the Dockerfile: into the environment $1, what the project needs to run, as requirements.lock pins it.
set -eu
python3 -m venv --without-pip "$1"
install="python3 -m pip --python $1/bin/python install --quiet --constraint requirements.lock"
if [ -n "${TORCH_INDEX_URL:-}" ]; then
  $install --no-deps --index-url "$TORCH_INDEX_URL" torch torchvision
fi
$install --requirement needs.txt
python3 -m pip --python "$1/bin/python" check
.ci/image/settle.sh "" "$1"
