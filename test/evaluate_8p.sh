#!/usr/bin/env bash
# Evaluates a checkpoint. Options: bash test/evaluate_8p.sh --help
[ "${-#*p}" != "$-" ] || {                                                                                         #  see tools/foreign_settings.sh
  exec "$(command -v bash || echo "${BASH:-bash}")" -p -- "${BASH_SOURCE:-$0}" "$@"                                #
  echo 'error: exec is a function of the caller here; unset it' >&2 && exit 1                                      #
}                                                                                                                  #
IFS= read -r line <"$0" && [[ $line != *$'\r' ]] || {                                                              #
  echo "error: $0 has line ends of Windows (CRLF); clone or copy the recipe without converting text" >&2 && exit 1 #
}                                                                                                                  #
# shellcheck source=test/lib.sh
source "$(dirname -- "$(readlink -f -- "$0")")/lib.sh"
launch evaluate "$@"
