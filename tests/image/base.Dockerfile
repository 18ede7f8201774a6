# What tests/image/build.sh builds the image on: Debian in the place of the official Python images, and the CUDA toolkit
# of this machine (the context `toolkit`) in the place of NVIDIA's.
FROM scratch AS slim
ADD slim.tar /

FROM slim AS build
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends g++ python3-dev python3-pip >/dev/null

FROM scratch AS cuda
COPY --from=toolkit / /usr/local/cuda-0.0/
