#!/bin/sh
# Part of the Dockerfile: compile the Python of the environment $2 below the root $1, as nobody can later, and give every
# file one date, so that the same files make the same layer.
set -eu
# Tests are left out: nothing imports them, and some are written for other versions of Python.
python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/tests?/|/torch/testing/_internal/' -s "$1" -p / "$1$2/lib"
chmod -R a+rX,go-w "$1$2"
find "$1$2" -exec touch --no-dereference --date=@0 {} +
