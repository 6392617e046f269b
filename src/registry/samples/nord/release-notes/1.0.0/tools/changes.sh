#!/bin/sh
# Prints the commits since a tag (by default the last one), oldest first.
# usage: changes.sh [TAG]
set -eu
tag=${1:-$(git describe --tags --abbrev=0 2>/dev/null || true)}
git log --reverse --no-merges --format='%h%x09%an%x09%s' ${tag:+"$tag.."}HEAD
