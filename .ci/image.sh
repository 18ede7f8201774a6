#!/usr/bin/env bash
# `make image`: build the Dockerfile with docker, podman or buildah, whichever works here, and say size and digest.
#
# The environment says what: IMAGE (name, default splatclip-python:dev), TARGET (gpu or cpu), BUILDER (docker, podman or
# buildah), WHEELS (a folder of wheels that lie ready), PIP_CONFIG (a pip.conf, for what holds a password), BUILD_OPTIONS
# (further options of the builder); BUILD_IMAGE, PYTHON_IMAGE, CUDA_IMAGE, CUDA_ARCHITECTURES, TORCH_INDEX_URL,
# TORCH_BUILD, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_NO_INDEX: the Dockerfile's arguments.
set -euo pipefail
cd "$(dirname "$0")/.."
IMAGE=${IMAGE:-splatclip-python:dev}
TARGET=${TARGET:-gpu}

fail() {
  echo "image: $1" >&2
  exit 2
}

works() {  # docker is often there without its daemon
  command -v "$1" > /dev/null && "$1" info > /dev/null 2>&1
}

if [ -n "${BUILDER:-}" ]; then
  command -v "$BUILDER" > /dev/null || fail "BUILDER=$BUILDER: there is no such program here"
else
  for one in docker podman buildah; do
    if works "$one"; then
      BUILDER=$one
      break
    fi
  done
fi
[ -n "${BUILDER:-}" ] || fail "neither docker (with its daemon), podman nor buildah works here: install one of them"
case $TARGET in cpu | gpu) ;; *) fail "TARGET=$TARGET: there are the targets cpu and gpu" ;; esac
case $IMAGE in *python*) ;; *) echo "image: no \"python\" in $IMAGE: Kubeflow's local runner will warn of it" >&2 ;; esac

sha=$(git rev-parse HEAD 2> /dev/null || true)
if [ -n "$sha" ] && [ -n "$(git status --porcelain 2> /dev/null)" ]; then
  sha=$sha-dirty
fi
[ -n "$sha" ] || echo "image: not in a git checkout: the image will not know its commit" >&2
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
created=$(git log -1 --format=%cI 2> /dev/null || date -u +%Y-%m-%dT%H:%M:%SZ)

given=(--build-arg "GIT_SHA=$sha" --build-arg "VERSION=$version" --build-arg "CREATED=$created")
for name in BUILD_IMAGE PYTHON_IMAGE CUDA_IMAGE CUDA_ARCHITECTURES TORCH_INDEX_URL TORCH_BUILD \
  PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_NO_INDEX; do
  if [ -n "${!name:-}" ]; then
    given+=(--build-arg "$name=${!name}")
  fi
done
if [ -n "${WHEELS:-}" ]; then
  [ -d "$WHEELS" ] || fail "WHEELS=$WHEELS: no such folder"
  given+=(--build-context "wheels=$WHEELS")
fi
if [ -n "${PIP_CONFIG:-}" ]; then
  [ -f "$PIP_CONFIG" ] || fail "PIP_CONFIG=$PIP_CONFIG: no such file"
  given+=(--secret "id=pip,src=$PIP_CONFIG")
fi
[ "$BUILDER" = docker ] || given+=(--layers)
# shellcheck disable=SC2206 # options, with spaces between
given+=(${BUILD_OPTIONS:-})

"$BUILDER" build --target "$TARGET" --tag "$IMAGE" "${given[@]}" .

case $BUILDER in
  docker) about=$(docker image inspect --format '{{.Size}} {{.Id}}' "$IMAGE") ;;
  podman) about=$(podman image inspect --format '{{.Size}} {{.Digest}}' "$IMAGE") ;;
  buildah) about="$(buildah images --json "$IMAGE" | sed -n 's/.*"size": "\(.*\)",.*/\1/p' | tr -d ' ') $(
    buildah images --no-trunc --format '{{.Digest}}' "$IMAGE")" ;;
esac
read -r size digest <<< "$about"
case $size in *[!0-9]*) ;; *) size="$((size / 1000000)) MB" ;; esac
echo "image: $IMAGE ($TARGET, ${sha:-no commit}): $size, $digest"
echo "image: pin it by the digest that the push prints: $BUILDER push $IMAGE REGISTRY/NAME"
