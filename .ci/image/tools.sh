#!/bin/sh
# Part of the Dockerfile: into the environment $1, what builds the wheel.
set -eu
python3 -m venv --without-pip "$1"
python3 -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["build-system"]["requires"], "cmake", "ninja", sep="\n")
' > /tmp/tools.txt
python3 -m pip --python "$1/bin/python" install --quiet --constraint requirements.lock --requirement /tmp/tools.txt
