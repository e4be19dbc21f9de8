# The one way to find a Python that can run the tools before anything is installed. Sourced by tools/setup.sh and test/lib.sh.
# shellcheck shell=bash

# Prints its name. 3.11 is the newest version that every stack supports.
find_python() {
  local candidate
  for candidate in python3 python3.{11,10,9,8,12,13,14} python; do
    # Each is run, because a version manager's shim may exist for a version that is not installed. -E and -s: PYTHONHOME,
    # PYTHONPATH and the user's own packages must not come before the standard library.
    if "${candidate}" -E -s -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
      echo "${candidate}"
      return
    fi
  done
  echo "error: no Python 3.8 or newer on PATH${PYENV_VERSION:+ with PYENV_VERSION=${PYENV_VERSION}};" \
    'install one with the package manager of this system' >&2
  return 1
}
