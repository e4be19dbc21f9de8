// Start and end, the guard against accidental use, error messages, options, and what the device says of itself.
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "emulator.h"

namespace {

thread_local std::string recent_error;
std::mutex options_mutex;
std::map<int, std::string> options;
std::map<int, int64_t> parameters;

// Parent and start time of a process, as /proc tells; false where it is gone.
bool look_up(long pid, long *parent, unsigned long long *started) {
  char path[64], text[4096];
  std::snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
  FILE *file = std::fopen(path, "r");
  if (file == nullptr) return false;
  size_t size = std::fread(text, 1, sizeof(text) - 1, file);
  std::fclose(file);
  text[size] = '\0';
  // The second field is the program's name in parentheses, which may hold anything.
  const char *rest = std::strrchr(text, ')');
  if (rest == nullptr) return false;
  return std::sscanf(rest, ") %*c %ld %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", parent,
                     started) == 2;
}

// EMULATED_NPU_STARTER is "PID:START_TIME" of a running test/npu/emulate.py; it must be this process or an ancestor,
// so that a variable that was exported or copied from a log starts nothing.
bool has_starter() {
  const char *value = std::getenv("EMULATED_NPU_STARTER");
  long starter = 0;
  unsigned long long expected = 0;
  if (value == nullptr || std::sscanf(value, "%ld:%llu", &starter, &expected) != 2) return false;
  long parent = 0;
  unsigned long long started = 0;
  for (long pid = getpid(); pid > 1 && look_up(pid, &parent, &started); pid = parent) {
    if (pid == starter) return started == expected;
  }
  return false;
}

}  // namespace

namespace emulator {

aclError fail(aclError code, const char *format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  recent_error = std::string("emulated NPU: ") + text;
  return code;
}

bool started_by_harness() {
  static const bool started = [] {
    bool found = has_starter();
    if (std::getenv("EMULATED_NPU_QUIET") == nullptr || !found) {
      std::fprintf(stderr, "%s\n",
                   found ? "*** EMULATED NPU: no Ascend hardware; figures of this run say nothing about speed ***"
                         : "error: this is the emulated CANN of the recipe's tests, and only test/npu/run.sh may start "
                           "it; take its folder off LD_LIBRARY_PATH and source CANN's own set_env.sh");
    }
    return found;
  }();
  return started;
}

}  // namespace emulator

using emulator::fail;

extern "C" {

aclError aclInit(const char *) {
  if (!emulator::started_by_harness()) {
    return fail(ACL_ERROR_FEATURE_UNSUPPORTED, "not started by the test harness (test/npu/run.sh)");
  }
  return ACL_SUCCESS;
}

aclError aclFinalize() { return ACL_SUCCESS; }

const char *aclGetRecentErrMsg() {
  static thread_local std::string given;
  given.swap(recent_error);
  recent_error.clear();
  return given.c_str();
}

const char *aclrtGetSocName() { return "Ascend910B2"; }

void aclAppLog(aclLogLevel, const char *, const char *, uint32_t, const char *, ...) {}

aclError aclsysGetCANNVersion(aclCANNPackageName, aclCANNPackageVersion *version) {
  *version = {};
  std::strcpy(version->version, CANN_VERSION);  // build.py gives it
  return ACL_SUCCESS;
}

aclError aclGetDeviceCapability(uint32_t device, aclDeviceInfo info, int64_t *value) {
  // The numbers of an Ascend 910B2.
  static const std::map<int, int64_t> capabilities = {
      {ACL_DEVICE_INFO_AI_CORE_NUM, 24}, {ACL_DEVICE_INFO_VECTOR_CORE_NUM, 48}, {ACL_DEVICE_INFO_L2_SIZE, 192 << 20}};
  auto found = capabilities.find(info);
  if (device >= emulator::kDevices || found == capabilities.end()) {
    return fail(ACL_ERROR_INVALID_PARAM, "device %u has no capability %d", device, info);
  }
  *value = found->second;
  return ACL_SUCCESS;
}

aclError aclGetCannAttributeList(const aclCannAttr **list, size_t *size) {
  static const aclCannAttr attributes[] = {ACL_CANN_ATTR_INF_NAN, ACL_CANN_ATTR_BF16, ACL_CANN_ATTR_JIT_COMPILE};
  *list = attributes;
  *size = sizeof(attributes) / sizeof(attributes[0]);
  return ACL_SUCCESS;
}

aclError aclGetCannAttribute(aclCannAttr attribute, int32_t *value) {
  // A 910B has infinities and bfloat16, and takes operators from the compiled library unless it is asked otherwise.
  *value = attribute == ACL_CANN_ATTR_JIT_COMPILE ? 0 : 1;
  return ACL_SUCCESS;
}

aclError aclSetCompileopt(aclCompileOpt option, const char *value) {
  std::lock_guard<std::mutex> lock(options_mutex);
  options[option] = value;
  return ACL_SUCCESS;
}

size_t aclGetCompileoptSize(aclCompileOpt option) {
  std::lock_guard<std::mutex> lock(options_mutex);
  return options[option].size() + 1;
}

aclError aclGetCompileopt(aclCompileOpt option, char *value, size_t size) {
  std::lock_guard<std::mutex> lock(options_mutex);
  const std::string &text = options[option];
  if (size < text.size() + 1) return fail(ACL_ERROR_INVALID_PARAM, "buffer of %zu bytes for a compile option", size);
  std::memcpy(value, text.c_str(), text.size() + 1);
  return ACL_SUCCESS;
}

aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  std::lock_guard<std::mutex> lock(options_mutex);
  parameters[option] = value;
  return ACL_SUCCESS;
}

aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t *value) {
  std::lock_guard<std::mutex> lock(options_mutex);
  *value = parameters[option];  // 0 where nobody has set it
  return ACL_SUCCESS;
}

aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) { return aclrtSetSysParamOpt(option, value); }
aclError aclrtCtxGetSysParamOpt(aclSysParamOpt option, int64_t *value) { return aclrtGetSysParamOpt(option, value); }

aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) { return ACL_SUCCESS; }
aclError aclrtSetOpWaitTimeout(uint32_t) { return ACL_SUCCESS; }
aclError aclrtSetOpExecuteTimeOut(uint32_t) { return ACL_SUCCESS; }
aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
aclError aclrtGetLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
aclError aclmdlInitDump() { return ACL_SUCCESS; }
aclError aclmdlSetDump(const char *) { return ACL_SUCCESS; }
aclError aclmdlFinalizeDump() { return ACL_SUCCESS; }

}  // extern "C"
