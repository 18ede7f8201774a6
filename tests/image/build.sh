#!/usr/bin/env bash
# Build both targets of the Dockerfile on bases made here, as no registry may be in reach. All of it stays in the folder
# $1 (default: build/image); a second run finds what has not changed. Needs root.
#
# Python is Debian's, nvcc this machine's. torch is in both targets the build that this project's environment has: what
# the target gpu shows is that the kernels compile with nvcc and lie in the image.
set -euo pipefail
cd "$(dirname "$0")/../.."
FOLDER=$(realpath -m "${1:-build/image}")
PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")

fail() {
  echo "tests/image/build.sh: $1" >&2
  exit 2
}
say() {
  echo "$((SECONDS / 60)):$(printf %02d $((SECONDS % 60))) $1"
}

missing=
for program in podman runc mmdebstrap; do
  command -v $program > /dev/null || missing="$missing $program"
done
[ -z "$missing" ] || fail "no$missing: apt-get install --no-install-recommends podman runc netavark mmdebstrap"
[ "$(id -u)" = 0 ] || fail "not root, which building in a chroot needs"
nvcc=$(command -v nvcc) || fail "no nvcc on PATH: install the CUDA toolkit, 13.0 or later"
toolkit=$("$nvcc" -v -E -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
toolkit=$(realpath -e "$toolkit") || fail "$nvcc does not say where its toolkit lies"

mkdir -p "$FOLDER"
cat > "$FOLDER/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$FOLDER/storage"
runroot = "$FOLDER/run"
END
export CONTAINERS_STORAGE_CONF=$FOLDER/storage.conf CONTAINERS_CONF=$PWD/tests/image/containers.conf
export BUILDAH_ISOLATION=chroot

wheels() {  # of all that the image installs, from where pip finds them on this machine
  local sum folder=$FOLDER/wheels
  "$PYTHON" -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    about = tomllib.load(file)
print(*about["project"]["dependencies"], *about["build-system"]["requires"], "cmake", "ninja", "pip", sep="\n")
' > "$FOLDER/needs.txt"
  sum=$(sha256sum "$FOLDER/needs.txt" requirements.lock | sha256sum)
  if [ "$(cat "$folder/.of" 2> /dev/null)" != "$sum" ]; then
    rm -rf "$folder"
    "$PYTHON" -m pip wheel --quiet --disable-pip-version-check --constraint requirements.lock \
      --requirement "$FOLDER/needs.txt" --wheel-dir "$folder" 2> "$FOLDER/wheels.log" \
      || fail "$(tail -5 "$FOLDER/wheels.log")"
    echo "$sum" > "$folder/.of"
  fi
  say "wheels: $(du -sh "$folder" | cut -f1)"
}

bases() {
  mkdir -p "$FOLDER/bases"
  if ! [ -f "$FOLDER/bases/slim.tar" ]; then
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3 --dpkgopt=force-unsafe-io \
      --aptopt='Acquire::Languages "none"' bookworm "$FOLDER/bases/new.tar"
    mv "$FOLDER/bases/new.tar" "$FOLDER/bases/slim.tar"
    say "Debian: $(du -sh "$FOLDER/bases/slim.tar" | cut -f1)"
  fi
  for base in slim build cuda; do
    podman build --quiet --layers --network host --file tests/image/base.Dockerfile --target $base \
      --build-context "toolkit=$toolkit" --tag "localhost/base:$base" "$FOLDER/bases" > "$FOLDER/base-$base.log"
  done
  say "base images"
}

wheels &
bases
wait $!

export BUILDER=podman WHEELS=$FOLDER/wheels PIP_NO_INDEX=1
export TORCH_BUILD=cpu CUDA_ARCHITECTURES=90-real
export BUILD_IMAGE=localhost/base:build PYTHON_IMAGE=localhost/base:slim CUDA_IMAGE=localhost/base:cuda
for target in cpu gpu; do
  TARGET=$target IMAGE=localhost/splatclip-python:$target .ci/image.sh > "$FOLDER/$target.log" 2>&1 \
    || { tail -30 "$FOLDER/$target.log" >&2; fail "target $target does not build; all of it: $FOLDER/$target.log"; }
  say "$(grep '^image: localhost' "$FOLDER/$target.log")"
done
podman image prune --force --filter until=24h > /dev/null  # what earlier builds left
