#!/bin/sh
# Part of the Dockerfile. $1: `kernels`, to compile them by themselves, or `all`: the project as it is to lie in
# /opt/splatclip, below /out. $2: the GPUs' architectures, or OFF for the CPU alone; nvcc is NVIDIA's image's, below /toolkit.
set -eu
environment=/opt/splatclip
if [ "$1" = kernels ]; then
  mkdir components pipelines
  touch README.md LICENSE
fi
if [ "$2" = OFF ]; then
  cuda=OFF
else
  cuda=ON
  CUDACXX=$(echo /toolkit/usr/local/cuda-[0-9]*.[0-9]*/bin/nvcc)
  export CUDACXX
  set -- "$@" "--config-settings=cmake.define.SPLAT2D_CUDA_ARCHITECTURES=$2"
fi
what=$1
shift 2
base=$(python3 -c 'import sys; print(sys._base_executable)')
"$base" -m pip --python /opt/build/bin/python wheel --quiet --no-deps --no-build-isolation --wheel-dir "/tmp/$what" \
  "--config-settings=cmake.define.SPLAT2D_CUDA=$cuda" "$@" .
if [ "$what" = all ]; then
  python3 -m venv --without-pip "$environment"
  "$base" -m pip --python "$environment/bin/python" install --quiet --no-warn-script-location --no-deps \
    --no-index --find-links /tmp/all --root /out splatclip
  .ci/image/settle.sh /out "$environment"
fi
