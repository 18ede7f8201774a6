# The image of SplatCLIP: the command, and every step of the Kubeflow pipeline (docs/image.md). `make image` builds it.
#   docker build -t splatclip-python:dev .    for GPUs: CUDA kernels, torch for CUDA
#   docker build -t splatclip-python:dev --target cpu --build-arg TORCH_INDEX_URL=ADDRESS .    for machines without
# Base images are named by exact tag. To pin them by digest: make image PYTHON_IMAGE=NAME@sha256:..., the others alike.
# The first two have the same Python at the same place; the first has a C++ compiler too. Of the third, nvcc is used.
ARG BUILD_IMAGE=docker.io/library/python:3.11.15-bookworm
ARG PYTHON_IMAGE=docker.io/library/python:3.11.15-slim-bookworm
ARG CUDA_IMAGE=docker.io/nvidia/cuda:13.0.2-devel-ubuntu24.04

FROM ${CUDA_IMAGE} AS cuda

# What the last stages run, and leave behind. Mounts have names of their own everywhere: with one at /tmp or /mnt, a podman
# (4.3.1) whose images lie below the same name on its own machine takes all files of the step for deleted.
FROM scratch AS scripts
COPY .ci/image/runtime.sh .ci/image/check.py /

# Wheels that lie ready: docker build --build-context wheels=FOLDER
FROM scratch AS wheels
COPY LICENSE /

FROM ${BUILD_IMAGE} AS tools
ENV PIP_FIND_LINKS=/wheels PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements.lock ./

FROM tools AS pins
COPY .ci/image/pins.py pyproject.toml ./
RUN python3 pins.py

# Every stage that installs names pip's settings anew; what holds a password goes into the secret `pip`, a pip.conf.
# One ARG a line: of several, buildah looks at the first alone when it asks whether a layer is still the same.
#
# The wheel, for the CPU alone and with CUDA (CUDA_ARCHITECTURES: see kernels/CMakeLists.txt): first the kernels by
# themselves, which a change of Python leaves as they are, then all of it, which finds them compiled.
FROM tools AS build
COPY .ci/image/tools.sh .ci/image/wheel.sh .ci/image/settle.sh .ci/image/
COPY --from=pins /pins/tools.txt ./
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_NO_INDEX=
RUN --mount=type=bind,from=wheels,target=/wheels --mount=type=secret,id=pip,target=/etc/pip.conf \
    .ci/image/tools.sh /opt/build
ENV PATH=/opt/build/bin:$PATH
COPY --from=pins /pins/pyproject.toml ./
COPY kernels kernels

FROM build AS build-cpu
RUN .ci/image/wheel.sh kernels OFF
COPY README.md LICENSE ./
COPY components components
COPY pipelines pipelines
RUN .ci/image/wheel.sh all OFF

FROM build AS build-gpu
ARG CUDA_ARCHITECTURES=release
RUN --mount=type=bind,from=cuda,target=/toolkit .ci/image/wheel.sh kernels "$CUDA_ARCHITECTURES"
COPY README.md LICENSE ./
COPY components components
COPY pipelines pipelines
RUN --mount=type=bind,from=cuda,target=/toolkit .ci/image/wheel.sh all "$CUDA_ARCHITECTURES"

# What the project needs: a layer that changes only with requirements.lock and the dependencies in pyproject.toml.
# TORCH_INDEX_URL: where torch and torchvision come from, if not from where the rest does.
FROM tools AS needs
COPY .ci/image/needs.sh .ci/image/settle.sh .ci/image/
COPY --from=pins /pins/needs.txt ./
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_NO_INDEX=
ARG TORCH_INDEX_URL=
RUN --mount=type=bind,from=wheels,target=/wheels --mount=type=secret,id=pip,target=/etc/pip.conf \
    .ci/image/needs.sh /opt/splatclip

# Runs as nobody in particular, under any uid, on a root file system that is read-only: only /tmp is written.
# No ENTRYPOINT: Kubeflow's local runner gives a command and expects it to be run as it is.
FROM ${PYTHON_IMAGE} AS runtime
RUN --mount=type=bind,from=scripts,target=/scripts /scripts/runtime.sh
ENV PATH=/opt/splatclip/bin:$PATH LANG=C.UTF-8 \
    HOME=/tmp USER=splatclip \
    XDG_CACHE_HOME=/tmp/.cache XDG_CONFIG_HOME=/tmp/.config XDG_DATA_HOME=/tmp/.local/share \
    MPLCONFIGDIR=/tmp/.cache/matplotlib TORCH_HOME=/tmp/.cache/torch TORCHINDUCTOR_CACHE_DIR=/tmp/.cache/inductor \
    HF_HOME=/tmp/.cache/huggingface TRITON_CACHE_DIR=/tmp/.cache/triton \
    PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 \
    GIT_PYTHON_REFRESH=quiet NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.title="SplatCLIP" \
      org.opencontainers.image.description="Images as a few hundred 2D Gaussians, read by a frozen CLIP" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /tmp
USER 65532:65532
CMD ["splatclip", "--help"]

# Both targets have this layer, almost all of their bytes, in common where they have torch in common.
FROM runtime AS ready
COPY --from=needs /opt/splatclip /opt/splatclip

# The end of a build is its first run. TORCH_BUILD: what torch has to be built for.
# GIT_SHA ends in -dirty where files were changed since; it becomes the tag git.sha of runs and artifacts.
FROM ready AS cpu
ARG TORCH_BUILD=cpu
COPY --from=build-cpu /out/ /
RUN --mount=type=bind,from=scripts,target=/scripts python3 /scripts/check.py cpu $TORCH_BUILD && find /tmp -mindepth 1 -delete
ARG VERSION=
ARG GIT_SHA=
ARG CREATED=
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$GIT_SHA \
      org.opencontainers.image.created=$CREATED
ENV SPLATCLIP_GIT_SHA=$GIT_SHA

FROM ready AS gpu
ARG TORCH_BUILD=cuda
COPY --from=build-gpu /out/ /
RUN --mount=type=bind,from=scripts,target=/scripts python3 /scripts/check.py gpu $TORCH_BUILD && find /tmp -mindepth 1 -delete
ARG VERSION=
ARG GIT_SHA=
ARG CREATED=
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$GIT_SHA \
      org.opencontainers.image.created=$CREATED
ENV SPLATCLIP_GIT_SHA=$GIT_SHA
