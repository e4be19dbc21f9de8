# Common part of the launchers: check the options, set up if needed, choose the environment, launch.
# Sourced by train_*.sh and evaluate_8p.sh. The work is done in Python: recipe/launch.
# shellcheck shell=bash

set -euo pipefail

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
readonly ROOT
readonly HELP_SHOWN=10 # status of launch.py check after --help

# Neither a pipe without a reader nor a closed stream (>&-) may end the training. The next opened file would also get the
# number of a closed stream.
detach_from_terminal() {
  trap '' PIPE
  if [[ ! -e /dev/fd/0 ]]; then exec </dev/null; fi
  if [[ ! -e /dev/fd/1 ]]; then exec >/dev/null; fi
  if [[ ! -e /dev/fd/2 ]]; then exec 2>/dev/null; fi
}

# shellcheck source=tools/foreign_settings.sh
source "${ROOT}/tools/foreign_settings.sh"
# shellcheck source=tools/find_python.sh
source "${ROOT}/tools/find_python.sh"

# launch full|performance|evaluate OPTIONS: does not return.
launch() {
  detach_from_terminal
  require_current_folder
  drop_exported_functions "$0" "${@:2}"
  drop_foreign_settings
  local script=$1
  shift
  local python device status=0
  python="$(find_python)"
  "${python}" "${ROOT}/tools/launch.py" check "${script}" "$@" || status=$?
  if ((status == HELP_SHOWN)); then
    exit 0
  elif ((status)); then
    exit "${status}"
  fi
  # Prints to stderr what it installs, if anything.
  python="$(bash "${ROOT}/tools/setup.sh" --quiet_if_ready --print_python)"
  device="$("${python}" "${ROOT}/tools/launch.py" environment "${script}" "$@")"
  # shellcheck source=/dev/null
  source "${ROOT}/test/env_${device}.sh"
  exec "${python}" "${ROOT}/tools/launch.py" run "${script}" "$@"
}
