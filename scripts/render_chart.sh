#!/usr/bin/env bash
# Brings crds/ into the chart of the operator, and renders the chart as one file for kubectl and Kustomize.
#
#   render_chart.sh            writes helm/orisun-operator/files/crds and examples/kubernetes/kustomize/base/install.yaml
#   render_chart.sh --check    only says what differs, and fails
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v helm >/dev/null || { echo "error: helm is needed: https://helm.sh" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R helm/orisun-operator "$work/chart"
mkdir -p "$work/chart/files/crds"
rm -f "$work/chart/files/crds/"*
cp crds/*.yaml "$work/chart/files/crds/"
{
  cat <<'END'
# The operator, rendered from helm/orisun-operator by scripts/render_chart.sh; kubectl apply --server-side -f install.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: orisun-system
  labels:
    pod-security.kubernetes.io/enforce: restricted
END
  helm template orisun-operator "$work/chart" --namespace orisun-system --no-hooks --set crds.keep=false |
    sed -e '/^# Source: /d' -e '/^ *helm\.sh\//d' -e '/^ *app\.kubernetes\.io\/managed-by: Helm$/d'
} >"$work/install.yaml"
crds=helm/orisun-operator/files/crds install=examples/kubernetes/kustomize/base/install.yaml
if [ "${1:-}" = --check ]; then
  diff -r "$work/chart/files/crds" $crds && diff "$work/install.yaml" $install ||
    { echo "error: the chart or install.yaml is not what crds/ and the chart say; run: make chart" >&2; exit 1; }
else
  mkdir -p $crds
  rm -f $crds/*
  cp "$work/chart/files/crds/"* $crds/
  cp "$work/install.yaml" $install
fi
