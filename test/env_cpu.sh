# Environment for training on CPUs; source it. What the user has set is kept.
# Threads per process (OMP_NUM_THREADS: cores / processes) are set by recipe/launch, which knows the processes.
# shellcheck shell=bash

# torch and the launcher shall see no accelerator, so that none is initialised or occupied.
export CUDA_VISIBLE_DEVICES=
export ASCEND_RT_VISIBLE_DEVICES=

# glibc keeps freed blocks of up to 256 MB instead of giving them back to the kernel, which would fill them with zeros
# when they are used again. In a training step those are most of the page faults.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-268435456}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-268435456}"
