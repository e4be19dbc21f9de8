# What the launchers share: check the options, set up where nothing is, choose the environment, launch.
# Sourced by train_*.sh. The thinking is Python's: recipe/launch.
# shellcheck shell=bash

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly ROOT
readonly HELP_SHOWN=10 # status of launch.py check after --help

# Have output that nobody takes end nothing: neither a pipe without a reader nor a stream that is closed (>&-). A closed
# one would moreover give its number to the next file that is opened.
detach_from_terminal() {
  trap '' PIPE
  if [[ ! -e /dev/fd/0 ]]; then exec </dev/null; fi
  if [[ ! -e /dev/fd/1 ]]; then exec >/dev/null; fi
  if [[ ! -e /dev/fd/2 ]]; then exec 2>/dev/null; fi
}

# Settings of a notebook or an IDE under which a tool does not find its modules, or waits at a prompt when it is done.
readonly FOREIGN_SETTINGS=(PYTHONSAFEPATH PYTHONINSPECT PYTHONSTARTUP)

# Prints the name of a Python that can run the tools before anything is installed.
find_python() {
  local candidate
  for candidate in python3 python python3.{13,12,11,10,9,8}; do
    if "${candidate}" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
      echo "${candidate}"
      return
    fi
  done
  echo "error: no Python 3.8 or newer on PATH; install python3" >&2
  return 1
}

# launch full|performance OPTIONS: does not return.
launch() {
  local script=$1
  shift
  local python device status=0
  detach_from_terminal
  unset "${FOREIGN_SETTINGS[@]}"
  python="$(find_python)"
  "${python}" "${ROOT}/tools/launch.py" check "${script}" "$@" || status=$?
  if ((status == HELP_SHOWN)); then
    exit 0
  elif ((status)); then
    exit "${status}"
  fi
  # Tells on stderr what it installs, if anything is to be installed.
  python="$(bash "${ROOT}/tools/setup.sh" --quiet_if_ready --print_python)"
  device="$("${python}" "${ROOT}/tools/launch.py" environment "${script}" "$@")"
  # shellcheck source=/dev/null
  source "${ROOT}/test/env_${device}.sh"
  exec "${python}" "${ROOT}/tools/launch.py" run "${script}" "$@"
}
