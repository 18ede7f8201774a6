#!/usr/bin/env bash
# Builds, tests and measures everything that needs a GPU, in one command of under 9 minutes and without a network:
#
#   benchmarks/gpu.sh [--images FOLDER|TAR ...] [--seconds 500]
#   benchmarks/gpu.sh --cpu        the same steps with small sizes on the CPU, which proves the script
#
# Needs CMake, a C++ compiler, nvcc (not with --cpu) and a Python ($PYTHON, .venv, or python3) with pybind11 3, NumPy,
# Pillow, rich and PyTorch. Writes fit_GPU_DATE.md and .json to $OUT (default benchmarks/results) as it goes.
set -euo pipefail
started=$(date +%s)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export OUT=${OUT:-$root/benchmarks/results}
mkdir -p "$OUT"

python=${PYTHON:-}
if [ -z "$python" ]; then
  if [ -x .venv/bin/python ]; then python=$root/.venv/bin/python; else python=python3; fi
fi
export PATH="$(dirname "$(command -v "$python")"):$PATH"

options=(-DCMAKE_BUILD_TYPE=Release -DSPLAT2D_IN_PLACE=OFF)
case " $* " in
  *" --cpu "*) options+=(-DSPLAT2D_CUDA=OFF) build=$root/build/gpu-cpu ;;
  *)
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader)
    capability=${capability%%$'\n'*} # of the first GPU
    capability=${capability//[. ]/}
    options+=(-DSPLAT2D_CUDA=ON "-DSPLAT2D_CUDA_ARCHITECTURES=$capability-real") build=$root/build/gpu
    ;;
esac

if ! "$python" -c 'import pybind11; raise SystemExit(int(pybind11.__version__.split(".")[0]) < 3)'; then
  echo "gpu.sh: $python has no pybind11 of version 3 or later: pip install 'pybind11>=3'" >&2
  exit 1
fi
if ! command -v make >/dev/null && command -v ninja >/dev/null; then export CMAKE_GENERATOR=Ninja; fi

echo "gpu.sh: building in $build"
options+=("-DPython_EXECUTABLE=$("$python" -c 'import sys; print(sys.executable)')")
options+=("-Dpybind11_DIR=$("$python" -m pybind11 --cmakedir)")
log=$build.log
mkdir -p "$build"
if ! { cmake -S kernels -B "$build" "${options[@]}" && cmake --build "$build" --parallel "$(nproc)" &&
  cmake --install "$build" --prefix "$build/package"; } >"$log" 2>&1; then
  tail -n 60 "$log"
  cp "$log" "$OUT/gpu_build_failed.log"
  echo "gpu.sh: the build failed, see $OUT/gpu_build_failed.log" >&2
  exit 1
fi
cp kernels/splat2d/*.py "$build/package/splat2d/"

# -S: an editable install of the project would be found before this build.
sites=$("$python" -c 'import site; print(":".join([*site.getsitepackages(), site.getusersitepackages()]))')
export PYTHONPATH="$build/package:$root:$root/benchmarks:${PYTHONPATH:+$PYTHONPATH:}$sites" PYTHONUNBUFFERED=1
echo "gpu.sh: built in $(($(date +%s) - started)) s"
exec "$python" -S benchmarks/gpu.py --started "$started" --package "$build/package" --command "benchmarks/gpu.sh $*" "$@"
