#!/usr/bin/env bash
# Measures images per second in a short training run that keeps no checkpoint.
# Options: bash test/train_performance_8p.sh --help

# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
launch performance "$@"
