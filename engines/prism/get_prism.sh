#!/usr/bin/env bash
# Builds Prism, Beam's portable runner, of the version of the installed Beam, and prints where it is (needs Go; 2 to 3
# minutes, once). `beam-influence run --runner prism` finds it there.
#
#   PRISM_CACHE    where programs are kept           (~/.cache/beam-influence/prism), a folder for each version
#   PRISM_VERSION  of Beam, such as 2.77.0           (what is installed in PRISM_PYTHON)
#   PRISM_PYTHON   the Python in which Beam is       (python3)
set -euo pipefail
cache=${PRISM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/beam-influence/prism}
installed='import importlib.metadata; print(importlib.metadata.version("apache-beam"))'
version=${PRISM_VERSION:-$("${PRISM_PYTHON:-python3}" -c "$installed")}
folder=$cache/v$version
mkdir -p "$folder"
(
  flock 9 # another one may be building it
  if [[ ! -x $folder/prism ]]; then
    echo "[prism] building v$version" >&2
    new=$(mktemp -d "$folder/new.XXXXXX")
    GOBIN=$new go install "github.com/apache/beam/sdks/v2/go/cmd/prism@v$version" >&2
    mv "$new/prism" "$folder/prism"
    rmdir "$new"
  fi
) 9>"$folder/lock"
echo "$folder/prism"
