#!/usr/bin/env bash
# Runs the end-to-end suite on a real Kubernetes; arguments go to pytest.
#
#   e2e.sh                                  all tests
#   e2e.sh -k quickstart                    some
#   KUBECONFIG=... E2E_IMAGE=... E2E_NATS_IMAGE=... e2e.sh     your cluster, which can pull these images
#
# Without KUBECONFIG: where ORISUN_E2E_K8S (by default ../shared/k8s) holds cluster.sh, the cluster that it makes; else
# kind, by Docker, with the Kubernetes of E2E_KUBERNETES_VERSION (1.34.0). kubectl and helm are needed besides.
# ORISUN_E2E_KEEP=1 leaves a cluster that was made here. Exit status 69: no cluster can be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kubernetes=$(cd "${ORISUN_E2E_K8S:-../shared/k8s}" 2>/dev/null && pwd || true)
# -s: figures and failures are shown while the rest still runs
needs() { # needs PROGRAM...
  for program; do command -v "$program" >/dev/null || { echo "error: the tests call $program; install it" >&2; exit 69; }; done
}
run() { .venv/bin/python -m pytest e2e --timeout 900 -s "$@"; }

if [ -n "${KUBECONFIG:-}" ]; then
  needs kubectl helm
  run --k8s-provider external --k8s-kubeconfig "$KUBECONFIG" "$@"
elif [ -x "$kubernetes/cluster.sh" ] && [ "$(id -u)" = 0 ]; then
  export ORISUN_E2E_K8S=$kubernetes ORISUN_E2E_CACHE=${ORISUN_E2E_CACHE:-$HOME/.cache/orisun-e2e}
  export PATH=$ORISUN_E2E_CACHE/bin:$PATH KUBECONFIG=$ORISUN_E2E_CACHE/kubeconfig
  ours=
  kubectl get --raw /readyz >/dev/null 2>&1 || ours=yes
  finish() {
    status=$?
    if [ -n "$ours" ] && [ -z "${ORISUN_E2E_KEEP:-}" ]; then "$kubernetes/cluster.sh" down; fi
    exit $status
  }
  trap finish EXIT
  "$kubernetes/build.sh" tools
  "$kubernetes/build.sh" kube
  "$kubernetes/base-images.sh" python 3.12
  DOCKER_BUILD_ARGS="--network host ${DOCKER_BUILD_ARGS:-}" scripts/images.sh
  # not of one that runs: it would write kube-proxy's configuration anew, which ends kube-proxy
  if [ -n "$ours" ]; then "$kubernetes/cluster.sh" up; fi
  run --k8s-provider external --k8s-kubeconfig "$KUBECONFIG" --e2e-load "$@"
elif command -v kind >/dev/null && docker info >/dev/null 2>&1; then
  needs kubectl helm
  scripts/images.sh
  run --k8s-provider kind --k8s-version "${E2E_KUBERNETES_VERSION:-1.34.0}" --e2e-load "$@"
else
  echo "error: no Kubernetes can be had: set KUBECONFIG, or install Docker and kind" >&2
  exit 69
fi
