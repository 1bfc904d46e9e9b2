#!/usr/bin/env bash
# Releases main as a version: sets it in pyproject.toml, the charts and wherever an image of it is named, commits, tags,
# and pushes both at once.
#
#   release.sh 1.2.3
#   release.sh 1.2.3 --notes release-notes.md    the notes become the tag's message, verbatim, headings too
#   release.sh 1.2.3 --no-push                   leaves commit and tag here
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
die() { echo "error: $*" >&2; exit 1; }
usage() { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }

version='' notes='' push=yes
while [ $# -gt 0 ]; do
  case $1 in
    --notes) [ $# -gt 1 ] || usage; notes=$2; shift ;;
    --no-push) push=no ;;
    -*) usage ;;
    *) [ -z "$version" ] || usage; version=$1 ;;
  esac
  shift
done
[ -n "$version" ] || usage
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+((a|b|rc)[0-9]+)?$ ]] || die "\"$version\" is no version; say 1.2.3 or 1.2.3rc1"
[ -z "$notes" ] || [ -s "$notes" ] || die "no release notes in \"$notes\""
[ "$(git branch --show-current)" = main ] || die "releases are made from main, this is \"$(git branch --show-current)\""
[ -z "$(git status --porcelain)" ] || die "there are changes that are not committed: git status"
tag=v$version
if git rev-parse -q --verify "refs/tags/$tag" >/dev/null; then die "$tag exists already"; fi
if [ $push = yes ]; then
  git fetch --quiet origin main --tags
  [ "$(git rev-parse HEAD)" = "$(git rev-parse origin/main)" ] || die "main is not origin's main; pull or push first"
  if git rev-parse -q --verify "refs/tags/$tag" >/dev/null; then die "$tag exists already"; fi
fi

message=$(mktemp)
trap 'rm -f "$message"' EXIT
if [ -n "$notes" ]; then
  cat "$notes" >"$message"
else
  previous=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)
  { echo "Orisun $version"; echo; git log --format='- %s' ${previous:+"$previous.."}HEAD; } >"$message"
fi
# charts want SemVer, Python wants PEP 440
semver=$(sed -E 's/(a|b|rc)([0-9]+)$/-\1.\2/' <<<"$version")
was=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
sed -i.old "s/^version = \".*\"/version = \"$version\"/" pyproject.toml
for chart in helm/*/Chart.yaml; do
  [ -e "$chart" ] || continue
  sed -i.old -e "s/^version: .*/version: $semver/" -e "s/^appVersion: .*/appVersion: \"$version\"/" "$chart"
done
named=(README.md docs/kubernetes.md docs/argocd/application.yaml
  examples/kubernetes/kustomize/base/install.yaml examples/kubernetes/kustomize/overlay/kustomization.yaml)
for file in "${named[@]}"; do
  sed -i.old -E "s/(^|[^0-9.])${was//./\\.}([^0-9.]|\$)/\1$version\2/g" "$file"
  rm -f "$file.old"
done
rm -f pyproject.toml.old helm/*/Chart.yaml.old
if ! git diff --quiet; then git commit --quiet --all --message "Release $version"; fi
# verbatim: a line that begins with # is a heading, not a comment
git tag --annotate --cleanup=verbatim --file "$message" "$tag"
if [ $push = yes ]; then
  git push --quiet --atomic origin main "$tag"
  echo "pushed main and $tag; the images: IMAGE=registry/orisun scripts/images.sh $version"
else
  echo "made $tag; push it: git push --atomic origin main $tag"
fi
