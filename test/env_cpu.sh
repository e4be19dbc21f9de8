# Environment for training on CPUs; source it. Variables that are set already are kept.
# Threads per process (OMP_NUM_THREADS: cores / processes) are set by recipe/launch, which knows their number.
# shellcheck shell=bash

# Hides accelerators from torch and the launcher, so that none is initialised or occupied.
export CUDA_VISIBLE_DEVICES=
export ASCEND_RT_VISIBLE_DEVICES=

# glibc keeps freed blocks of up to 256 MB. The kernel would fill returned blocks with zeros before their next use, which
# causes most page faults of a training step.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-268435456}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-268435456}"
