#!/bin/sh
# Part of the Dockerfile: into the environment $1, what builds the wheel.
set -eu
python3 -m venv --without-pip "$1"
python3 -m pip --python "$1/bin/python" install --quiet --constraint requirements.lock --requirement tools.txt
