# Environment for training on Ascend NPUs; source it. Variables that are set already are kept; nothing here ends the caller.
# shellcheck shell=bash

# recipe_cann_folders: folders that CANN may be installed in, the first one first. Its installer notes where it was told to.
recipe_cann_folders() {
  local home="${HOME:-/root}/Ascend" note
  for note in /etc/Ascend "${home}"; do
    sed -n 's/\r$//; s/^[[:space:]]*Install_Path[A-Za-z_]*[[:space:]]*=[[:space:]]*//p' \
      "${note}/ascend_cann_install.info" 2>/dev/null || true
  done
  printf '%s\n' /usr/local/Ascend "${home}"
}

# recipe_source_cann: CANN's own environment, unless it is there already.
recipe_source_cann() {
  if [[ -n "${ASCEND_OPP_PATH:-}" ]]; then
    return 0
  fi
  local file folder flags=$-
  local -a folders files=("${ASCEND_TOOLKIT_HOME:-/nowhere}"/{,../}set_env.sh)
  mapfile -t folders < <(recipe_cann_folders)
  for folder in "${folders[@]}"; do
    # The toolkit (named cann since CANN 8.5), or nnae, its part that runs models.
    files+=("${folder}"/{ascend-toolkit/,cann/,nnae/,}set_env.sh)
  done
  for file in "${files[@]}"; do
    if [[ -f "${file}" ]]; then
      # The file may read unset variables, and commands in it may fail.
      set +eu
      # shellcheck source=/dev/null
      source "${file}"
      if [[ "${flags}" == *e* ]]; then set -e; fi
      if [[ "${flags}" == *u* ]]; then set -u; fi
      return 0
    fi
  done
  echo "warning: no CANN set_env.sh found; source it before, or set ASCEND_TOOLKIT_HOME" >&2 || true
}

# recipe_default NAME VALUE: export a variable that the user has not set.
recipe_default() {
  if [[ -z "${!1+set}" ]]; then
    export "$1=$2"
  fi
}

# recipe_quiet_devices: the cards log errors only, and no events; more logging costs speed. Needs root, so it may fail.
recipe_quiet_devices() {
  if ! command -v msnpureport >/dev/null; then
    return 0
  fi
  local card cards=1
  if command -v npu-smi >/dev/null; then
    cards="$(npu-smi info -l 2>/dev/null | grep -c 'NPU ID' || true)"
  fi
  for ((card = 0; card < cards; card++)); do
    msnpureport -g error -d "${card}" >/dev/null 2>&1 || true
  done
  if ((cards)); then
    msnpureport -e disable >/dev/null 2>&1 || true
  fi
}

# recipe_preload_tcmalloc: tcmalloc is faster at the many small blocks that the loader allocates and frees.
recipe_preload_tcmalloc() {
  local library
  library="$(ldconfig -p 2>/dev/null | awk '/libtcmalloc(_minimal)?\.so\.4/ {print $NF; exit}' || true)"
  if [[ -n "${library}" ]]; then
    recipe_default LD_PRELOAD "${library}"
  fi
}

recipe_source_cann
recipe_quiet_devices
recipe_preload_tcmalloc
# A second thread queues operators and prepares their launch (level 2).
recipe_default TASK_QUEUE_ENABLE 2
# Each process keeps to the cores near its card.
recipe_default CPU_AFFINITY_CONF 1
# Operators on non-contiguous tensors are combined instead of copied one by one.
recipe_default COMBINED_ENABLE 1
# Crops and targets vary in size; expandable segments avoid fragmentation.
recipe_default PYTORCH_NPU_ALLOC_CONF expandable_segments:True
# Memory freed by one stream is given to another without waiting.
recipe_default MULTI_STREAM_MEMORY_REUSE 1
# Number of compiled operators to keep; a training with varying shapes makes more than the default of 10000.
recipe_default ACLNN_CACHE_LIMIT 100000
# Collectives run on the card as one graph.
recipe_default HCCL_OP_BASE_FFTS_MODE_ENABLE TRUE
# Machines of a cluster need not be in a whitelist file.
recipe_default HCCL_WHITELIST_DISABLE 1
# Seconds that ranks wait for each other; compiling at the start can take longer than the default of 120 (EI0006).
recipe_default HCCL_CONNECT_TIMEOUT 1800
# CANN logs errors only, to files (~/ascend/log, or ASCEND_PROCESS_LOG_PATH), not to the terminal.
recipe_default ASCEND_GLOBAL_LOG_LEVEL 3
recipe_default ASCEND_SLOG_PRINT_TO_STDOUT 0
# Nor does it log events, which it does by default at every log level.
recipe_default ASCEND_GLOBAL_EVENT_ENABLE 0
# Ascend's own script also sets DYNAMIC_OP and PTCOPY_ENABLE, which torch_npu does not read (2.1.0 to 2.8.0), and
# HOST_CACHE_CAPACITY, which is for whole models in CANN's own format; ACLNN_CACHE_LIMIT is for single operators.

unset -f recipe_cann_folders recipe_source_cann recipe_default recipe_quiet_devices recipe_preload_tcmalloc
