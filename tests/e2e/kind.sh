#!/usr/bin/env bash
# The whole of it on a real cluster of one node: Kubeflow Pipelines standalone, k8s/overlays/kind, a run followed to its
# end, taken up again, fitted by a Job, scheduled. Wants kind, kubectl, Docker, openssl, 8 cores and 24 GiB; half an hour. The
# cluster is removed at the end, but with KEEP=1. LIMIT: how long one command of ours may take. Where the image that
# the overlay names is not there yet, the target cpu is built, for which TORCH_INDEX_URL must say where torch for the CPU
# lies (docs/image.md). What this proves that no test here does: docs/untested.md.
set -euo pipefail
cd "$(dirname "$0")/../.."

CLUSTER=${CLUSTER:-splatclip-e2e}
KFP_VERSION=${KFP_VERSION:-2.17.0}
IMAGE=splatclip-python:dev # as k8s/overlays/kind has it
STORE=s3://splatclip/store
PARAMS=${PARAMS:-params/kind.yaml}
LIMIT=${LIMIT:-20m}
PORT=${PORT:-18888}
BIN=${BIN:-.venv/bin}
MANIFESTS=https://github.com/kubeflow/pipelines/manifests/kustomize

say() { printf '\n== %s\n' "$*"; }

for tool in kind kubectl docker openssl timeout; do
  command -v "$tool" >/dev/null ||
    { echo "$tool is missing; this needs kind, kubectl, docker, openssl and coreutils' timeout" >&2; exit 2; }
done
if [ -z "${TORCH_INDEX_URL:-}" ] && ! docker image inspect "$IMAGE" >/dev/null 2>&1; then
  echo "there is no image $IMAGE: build it (make image TARGET=cpu TORCH_INDEX_URL=...), or set TORCH_INDEX_URL to where torch" \
    "for the CPU lies (docs/image.md)" >&2
  exit 2
fi
if kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; then
  echo "a cluster $CLUSTER is there already; delete it (kind delete cluster --name $CLUSTER) or set CLUSTER" >&2
  exit 2
fi

# A run whose pods find no room would be followed for ever: a step's own time begins with its pod.
splatclip() {
  local ended=0
  timeout --foreground --kill-after=30 "$LIMIT" "$BIN/splatclip" "$@" || ended=$?
  [ "$ended" -ne 124 ] || echo "no end within $LIMIT: splatclip $*" >&2
  return "$ended"
}

WORK=$(mktemp -d)
export KUBECONFIG=$WORK/kubeconfig
FORWARD=
SECRETS=()
finish() {
  code=$?
  if [ "$code" -ne 0 ]; then
    kubectl get pods --all-namespaces 2>/dev/null || true
    kubectl -n kubeflow get events --sort-by=.lastTimestamp 2>/dev/null | tail -n 30 || true
  fi
  [ -z "$FORWARD" ] || kill "$FORWARD" 2>/dev/null || true
  [ "${#SECRETS[@]}" -eq 0 ] || rm -f "${SECRETS[@]}"
  if [ "${KEEP:-0}" = 1 ]; then
    echo "kept: cluster $CLUSTER, KUBECONFIG=$KUBECONFIG"
  else
    kind delete cluster --name "$CLUSTER" || true
    rm -rf "$WORK"
  fi
  exit "$code"
}
trap finish EXIT

say "image $IMAGE"
docker image inspect "$IMAGE" >/dev/null 2>&1 || BUILDER=docker TARGET=cpu IMAGE=$IMAGE .ci/image.sh

say "cluster $CLUSTER"
kind create cluster --name "$CLUSTER" --wait 5m
kind load docker-image "$IMAGE" --name "$CLUSTER"

say "Kubeflow Pipelines $KFP_VERSION"
kubectl apply -k "$MANIFESTS/cluster-scoped-resources?ref=$KFP_VERSION"
kubectl wait --for condition=established --timeout=2m crd/applications.app.k8s.io
kubectl apply -k "$MANIFESTS/env/platform-agnostic?ref=$KFP_VERSION"
kubectl -n kubeflow wait --for condition=available --timeout=15m deployment --all

say "k8s/overlays/kind"
overlay=k8s/overlays/kind
for name in store mlflow-db; do
  # what is there may be somebody's own
  if [ ! -e "$overlay/$name.env" ]; then
    SECRETS+=("$overlay/$name.env")
    sed -E "s/^(AWS_SECRET_ACCESS_KEY|password)=\$/\1=$(openssl rand -hex 20)/" "$overlay/$name.env.example" \
      >"$overlay/$name.env"
  fi
done
kubectl apply -k "$overlay"
kubectl -n splatclip rollout status statefulset/seaweedfs --timeout=10m
kubectl -n splatclip rollout status deployment/mlflow --timeout=15m
kubectl -n splatclip create job --from=cronjob/store-check store-check-e2e
kubectl -n splatclip wait --for condition=complete --timeout=5m job/store-check-e2e

say "the API, at port $PORT"
kubectl -n kubeflow port-forward service/ml-pipeline "$PORT:8888" >"$WORK/forward.log" 2>&1 &
FORWARD=$!
export SPLATCLIP_KFP_HOST=http://127.0.0.1:$PORT
for _ in $(seq 60); do
  splatclip pipeline list --limit 1 >/dev/null 2>&1 && break
  sleep 2
done
splatclip pipeline list --limit 1

# Runs CMD..., and fails unless it ends with the exit code wanted.
ends_with() {
  wanted=$1
  shift
  code=0
  "$@" || code=$?
  [ "$code" -eq "$wanted" ] || { echo "ended with $code, not with $wanted: $*" >&2; exit 1; }
}

small=(--params "$PARAMS" --image "$IMAGE" --store "$STORE")

say "a run, followed to its end"
ends_with 0 splatclip pipeline submit "${small[@]}" --follow --json >"$WORK/run.json" 2> >(tee "$WORK/run.log" >&2)
run=$(sed -n 's/.*"run_id": "\(.*\)".*/\1/p' "$WORK/run.json")
grep -q '^splat_fit | ' "$WORK/run.log" || { echo "no line of splat_fit's log was shown" >&2; exit 1; }
splatclip pipeline status "$run"

say "the same again: everything is found"
ends_with 0 splatclip pipeline resume "$run" --follow --json 2> >(tee "$WORK/again.log" >&2) >/dev/null
[ "$(grep -c 'found, nothing to do' "$WORK/again.log")" -ge 8 ] || { echo "work was done twice" >&2; exit 1; }

say "nothing changed: nothing is started"
splatclip pipeline submit "${small[@]}" --if-changed --follow >/dev/null
splatclip pipeline submit "${small[@]}" --if-changed | tee /dev/stderr | grep -q 'none is started'

say "the pictures are fitted by an Indexed Job"
# another graph, so a pipeline of its own; other splats than those that are there
ends_with 0 splatclip pipeline submit "${small[@]}" --pipeline train-eval-job --set fleet.executor=job \
  --set splat_fit.num_gaussians=40 --follow --json 2> >(tee "$WORK/job.log" >&2) >/dev/null
grep -q 'Job .* in namespace splatclip: .* indexes for' "$WORK/job.log" || { echo "no Job was made" >&2; exit 1; }

say "a run that cannot succeed ends with 42"
ends_with 42 splatclip pipeline submit "${small[@]}" --follow \
  --set download.source=folder --set download.path=/no/such/folder --set train_teacher.seed=7

say "a schedule of a minute, changed while its run is at work"
mkdir "$WORK/schedules"
cat >"$WORK/schedules/often.yaml" <<EOF
name: often
interval: 60s
params: $PWD/$PARAMS
store: $STORE
image: $IMAGE
EOF
schedule=(splatclip pipeline schedule)
"${schedule[@]}" apply "$WORK/schedules"
"${schedule[@]}" apply "$WORK/schedules" | grep -q unchanged
for _ in $(seq 60); do
  "${schedule[@]}" list | grep -q RUNNING && break
  sleep 5
done
"${schedule[@]}" list | tee /dev/stderr | grep -q RUNNING
busy=$(splatclip pipeline list --state running --json | sed -n 's/.*"run_id": "\(.*\)".*/\1/p' | head -n 1)
sed -i.bak 's/60s/1h/' "$WORK/schedules/often.yaml"
"${schedule[@]}" apply "$WORK/schedules" | tee /dev/stderr | grep -q 'kept for now'
ends_with 0 splatclip pipeline logs "$busy" --follow
"${schedule[@]}" apply "$WORK/schedules" | tee /dev/stderr | grep -q deleted
"${schedule[@]}" delete often

say "all of it held"
