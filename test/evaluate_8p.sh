#!/usr/bin/env bash
# Evaluates a checkpoint. Options: bash test/evaluate_8p.sh --help

# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
launch evaluate "$@"
