# Environment for training on NVIDIA GPUs; source it. What the user has set is kept.
# shellcheck shell=bash

# Crops and targets vary in size; segments that can grow are not fragmented by that.
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF-expandable_segments:True}"
# A rank whose peer is gone ends with an error instead of waiting for ever.
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING-1}"
