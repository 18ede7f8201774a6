# Everything runs in .venv, which make itself creates and keeps up to date; requirements.lock pins every version.
PYTHON ?= python3
BIN := .venv/bin
# A module is compiled when it is first imported (most never are) and kept, also where the environment says otherwise.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint requirements.lock
NATIVE := $(shell find kernels -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name CMakeLists.txt)
STORE ?= runs/store
PARAMS ?= params.yaml
# The quick tests often wait for a server or a clock: one process more than there are cores. The others rarely do.
CORES := $(shell getconf _NPROCESSORS_ONLN)
IN_PARALLEL := --maxprocesses 8 --dist loadfile --no-loadscope-reorder --numprocesses

# Each for so many seconds; two at a time, all to their end: make --keep-going --jobs 2 fuzz. FUZZ_SEED=0 takes a new seed.
FUZZERS := gs2d shards manifests captions params urls images codec
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 0

.PHONY: demo image test test-full test-image e2e-kind system-packages image-packages lint format lock clean fuzz $(FUZZERS:%=fuzz-%) clang sbom audit
.DELETE_ON_ERROR:

demo: .venv/.installed  ## the whole pipeline on the embedded default, through KFP's local runner, ending with a report
	$(BIN)/splatclip pipeline run-local --params $(PARAMS) --store $(STORE)

# IMAGE=name TARGET=gpu|cpu, the Dockerfile's arguments and more: .ci/image.sh, docs/image.md
image:  ## the container image, by docker, podman or buildah
	@.ci/image.sh

test: .venv/.installed-dev  ## what a laptop can test; no root, no network
	$(BIN)/python -m pytest $(IN_PARALLEL) $(shell expr $(CORES) + 1)

test-full: .venv/.installed-dev system-packages image-packages build/tools/.installed  ## what needs nvcc, root or time
	$(BIN)/python -m pytest $(IN_PARALLEL) $(CORES) -m "full or image or faults" --timeout 1800

e2e-kind: .venv/.installed  ## all of it on a real cluster: wants kind, kubectl, Docker, half an hour (docs/untested.md)
	BIN=$(BIN) tests/e2e/kind.sh

test-image: .venv/.installed-dev image-packages  ## of these, both targets of the Dockerfile built, looked through and run
	$(BIN)/python -m pytest -m image

# A real S3 server for the tests; what builds and runs the image. Without root the tests fail and say what to install.
system-packages: SYSTEM_PACKAGES := swift-proxy swift-account swift-container swift-object memcached
system-packages: PROGRAMS := swift-proxy-server swift-object-server memcached
image-packages: SYSTEM_PACKAGES := podman runc netavark mmdebstrap
image-packages: PROGRAMS := podman runc mmdebstrap
system-packages image-packages:
	@(for program in $(PROGRAMS); do command -v $$program >/dev/null || exit 1; done) || \
	if test "$$(id -u)" = 0; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq --yes --no-install-recommends $(SYSTEM_PACKAGES) >/dev/null; \
	else \
	  echo "not root: apt-get install --no-install-recommends $(SYSTEM_PACKAGES)" >&2; \
	fi

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(FUZZERS:%=fuzz-%)  ## every parser, fed with what nobody would write (docs/security.md); one alone: make fuzz-urls

$(FUZZERS:%=fuzz-%): fuzz-%: .venv/.installed-fuzz
	$(BIN)/python tests/fuzz/run.py $* --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

# libFuzzer comes with clang; the others bring their own.
fuzz-codec: clang
CLANG := clang libclang-rt-14-dev
clang:
	@command -v clang++ >/dev/null || \
	if test "$$(id -u)" = 0; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq --yes --no-install-recommends $(CLANG) >/dev/null; \
	else \
	  echo "not root: apt-get install --no-install-recommends $(CLANG)" >&2; \
	fi

sbom: .venv/.installed build/tools/.installed  ## build/sbom.cdx.json: what is installed, and its licences
	$(BIN)/python .ci/sbom.py

audit: .venv/.tools build/tools/.installed  ## known vulnerabilities of what is locked; needs the network, else exit 75
	$(BIN)/python .ci/audit.py

build/tools/.installed: requirements-tools.lock
	test -x build/tools/bin/python || $(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pip comes first, as that of older Pythons takes minutes over what is pinned; then torch, so that a CPU build configured
# in pip is taken and not replaced by another package's wish.
.venv/.tools: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "SplatCLIP needs Python 3.11 or later; '$(PYTHON)' is older. Try: make PYTHON=python3.12 ..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) pip
	$(PIP) torch numpy
	$(PIP) scikit-build-core pybind11 cmake ninja
	touch $@

.venv/.installed: .venv/.tools pyproject.toml $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable .
	touch $@

.venv/.installed-dev: .venv/.tools pyproject.toml $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable '.[dev]'
	touch .venv/.installed $@

.venv/.installed-fuzz: .venv/.installed-dev
	$(PIP) atheris  # the extra `fuzz`, without building the kernels anew
	touch $@

lock: .venv/.installed-fuzz  ## pin what is installed now
	$(BIN)/python -m pip freeze --all --exclude-editable | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf build .venv .pytest_cache .mypy_cache .ruff_cache
