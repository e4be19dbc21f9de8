#!/usr/bin/env bash
#
# Sets up everything that training needs: bash tools/setup.sh [--help]
# Finds a Python that can run tools/setup_run.py, which does the work.
[ "${-#*p}" != "$-" ] || {                                                                                         #  see tools/foreign_settings.sh
  exec "$(command -v bash || echo "${BASH:-bash}")" -p -- "${BASH_SOURCE:-$0}" "$@"                                #
  echo 'error: exec is a function of the caller here; unset it' >&2 && exit 1                                      #
}                                                                                                                  #
IFS= read -r line <"$0" && [[ $line != *$'\r' ]] || {                                                              #
  echo "error: $0 has line ends of Windows (CRLF); clone or copy the recipe without converting text" >&2 && exit 1 #
}                                                                                                                  #
set -euo pipefail

# A link may have another name. Without dirname, because PATH may have no programs at all.
HERE="$0"
if [[ -L "${HERE}" ]]; then HERE="$(readlink -f -- "${HERE}")"; fi
HERE="${HERE%setup.sh}"
HERE="$(cd -- "${HERE:-.}" && pwd)"
# shellcheck source=tools/foreign_settings.sh
source "${HERE}/foreign_settings.sh"
# shellcheck source=tools/find_python.sh
source "${HERE}/find_python.sh"
drop_exported_functions "$0" "$@"
python="$(find_python)"
exec "${python}" -E -s "${HERE}/setup_run.py" "$@"
