#!/usr/bin/env bash
#
# Sets up everything that training needs: bash tools/setup.sh [--help]
# Finds a Python that can run tools/setup_run.py, which does the work.

set -euo pipefail

main() {
  local here python
  unset CDPATH # with it, cd may go elsewhere and print the folder
  here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
  for python in python3 python3.{11,10,9,8,12,13,14} python; do
    # Each is run, because a version manager's shim may exist for a version that is not installed. -E and -s: PYTHONHOME,
    # PYTHONPATH and the user's own packages must not come before the standard library.
    if "${python}" -E -s -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
      exec "${python}" -E -s "${here}/setup_run.py" "$@"
    fi
  done
  echo 'error: no Python 3.8 or newer on PATH; install one with the package manager of this system' >&2
  exit 1
}

main "$@"
