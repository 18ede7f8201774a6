#!/bin/sh
# Part of the Dockerfile: into the environment $1, what the project needs to run, as requirements.lock pins it. By the pip
# that is locked, too: that of the base image may take minutes over so many pins.
set -eu
python3 -m venv --without-pip /opt/pip
python3 -m pip --python /opt/pip/bin/python install --quiet --constraint requirements.lock pip
python3 -m venv --without-pip "$1"
pip="/opt/pip/bin/python -m pip --python $1/bin/python"
install="$pip install --quiet --constraint requirements.lock"
if [ -n "${TORCH_INDEX_URL:-}" ]; then
  $install --no-deps --index-url "$TORCH_INDEX_URL" torch torchvision
fi
$install --requirement needs.txt
$pip check
.ci/image/settle.sh "" "$1"
