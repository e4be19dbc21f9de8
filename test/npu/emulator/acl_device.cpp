// Devices, contexts, streams and events.
#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "emulator.h"

namespace {

struct Context {
  int32_t device;
};

struct Stream {
  int32_t device;
  int32_t id;
};

struct Event {
  double recorded_ms = -1;
};

Context contexts[emulator::kDevices];
thread_local Context *current = nullptr;
std::mutex handles_mutex;
std::set<const void *> streams, events;
int32_t next_stream = 1;

double now_ms() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

bool is_known(const std::set<const void *> &handles, const void *handle) {
  std::lock_guard<std::mutex> lock(handles_mutex);
  return handles.count(handle) != 0;
}

// The cards that ASCEND_RT_VISIBLE_DEVICES leaves: "0,1,2" or "0-2"; as in CANN, what follows an entry that is no card
// does not count, and an empty text hides all.
uint32_t visible_devices() {
  const char *text = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
  if (text == nullptr) return emulator::kDevices;
  std::set<long> found;
  while (*text != '\0') {
    char *end = nullptr;
    long first = std::strtol(text, &end, 10), last = first;
    if (end == text) break;
    if (*end == '-') last = std::strtol(end + 1, &end, 10);
    if (first < 0 || last < first || last >= static_cast<long>(emulator::kDevices)) break;
    for (long card = first; card <= last; ++card) found.insert(card);
    if (*end != ',') break;
    text = end + 1;
  }
  return found.size();
}

}  // namespace

namespace emulator {

int32_t current_device() { return current == nullptr ? 0 : current->device; }

bool is_stream(aclrtStream stream) { return stream == nullptr || is_known(streams, stream); }

}  // namespace emulator

using emulator::fail;

#define REQUIRE_STREAM(stream)                                                              \
  if (!emulator::is_stream(stream)) {                                                       \
    return fail(ACL_ERROR_RT_STREAM_CONTEXT, "%s: stream %p is not there", __func__, stream); \
  }
#define REQUIRE_EVENT(event)                                                            \
  if (!is_known(events, event)) {                                                       \
    return fail(ACL_ERROR_RT_PARAM_INVALID, "%s: event %p is not there", __func__, event); \
  }

extern "C" {

aclError aclrtGetDeviceCount(uint32_t *count) {
  *count = emulator::started_by_harness() ? visible_devices() : 0;
  return *count == 0 ? fail(ACL_ERROR_RT_NO_DEVICE, "no device is visible") : ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t device) {
  if (!emulator::started_by_harness() || device < 0 || device >= static_cast<int32_t>(visible_devices())) {
    return fail(ACL_ERROR_RT_INVALID_DEVICEID, "there is no device %d", device);
  }
  contexts[device].device = device;
  current = &contexts[device];
  return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t) { return ACL_SUCCESS; }

aclError aclrtGetDevice(int32_t *device) {
  if (current == nullptr) return fail(ACL_ERROR_RT_CONTEXT_NULL, "no device was set in this thread");
  *device = current->device;
  return ACL_SUCCESS;
}

aclError aclrtGetCurrentContext(aclrtContext *context) {
  if (current == nullptr) return fail(ACL_ERROR_RT_CONTEXT_NULL, "no device was set in this thread");
  *context = current;
  return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  for (Context &known : contexts) {
    if (&known == context) {
      current = &known;
      return ACL_SUCCESS;
    }
  }
  return fail(ACL_ERROR_RT_CONTEXT_NULL, "%p is no context", context);
}

aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) {
  *can = device != peer;
  return ACL_SUCCESS;
}

aclError aclrtDeviceEnablePeerAccess(int32_t, uint32_t) { return ACL_SUCCESS; }

aclError aclrtSynchronizeDevice() {
  emulator::count("aclrtSynchronizeDevice");
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeDeviceWithTimeout(int32_t) { return aclrtSynchronizeDevice(); }

// Streams

aclError aclrtCreateStream(aclrtStream *stream) {
  std::lock_guard<std::mutex> lock(handles_mutex);
  *stream = new Stream{emulator::current_device(), next_stream++};
  streams.insert(*stream);
  return ACL_SUCCESS;
}

aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t, uint32_t) { return aclrtCreateStream(stream); }

aclError aclrtDestroyStream(aclrtStream stream) {
  std::lock_guard<std::mutex> lock(handles_mutex);
  if (streams.erase(stream) == 0) return fail(ACL_ERROR_RT_PARAM_INVALID, "stream %p is destroyed twice", stream);
  delete static_cast<Stream *>(stream);
  return ACL_SUCCESS;
}

aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }

aclError aclrtSynchronizeStream(aclrtStream stream) {
  REQUIRE_STREAM(stream);
  emulator::count("aclrtSynchronizeStream");
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t) { return aclrtSynchronizeStream(stream); }

aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus *status) {
  REQUIRE_STREAM(stream);
  *status = ACL_STREAM_STATUS_COMPLETE;
  return ACL_SUCCESS;
}

aclError aclrtStreamGetId(aclrtStream stream, int32_t *id) {
  REQUIRE_STREAM(stream);
  *id = stream == nullptr ? 0 : static_cast<Stream *>(stream)->id;
  return ACL_SUCCESS;
}

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) {
  REQUIRE_STREAM(stream);
  REQUIRE_EVENT(event);
  return ACL_SUCCESS;
}

aclError aclrtSetStreamFailureMode(aclrtStream stream, uint64_t) {
  REQUIRE_STREAM(stream);
  return ACL_SUCCESS;
}

aclError aclrtSetStreamOverflowSwitch(aclrtStream stream, uint32_t) {
  REQUIRE_STREAM(stream);
  return ACL_SUCCESS;
}

aclError aclrtGetStreamOverflowSwitch(aclrtStream stream, uint32_t *flag) {
  REQUIRE_STREAM(stream);
  *flag = 0;
  return ACL_SUCCESS;
}

// Events

aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t) {
  std::lock_guard<std::mutex> lock(handles_mutex);
  *event = new Event;
  events.insert(*event);
  return ACL_SUCCESS;
}

aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t flag) { return aclrtCreateEventWithFlag(event, flag); }

aclError aclrtDestroyEvent(aclrtEvent event) {
  std::lock_guard<std::mutex> lock(handles_mutex);
  if (events.erase(event) == 0) return fail(ACL_ERROR_RT_PARAM_INVALID, "event %p is destroyed twice", event);
  delete static_cast<Event *>(event);
  return ACL_SUCCESS;
}

aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) {
  REQUIRE_EVENT(event);
  REQUIRE_STREAM(stream);
  static_cast<Event *>(event)->recorded_ms = now_ms();
  return ACL_SUCCESS;
}

aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream) {
  REQUIRE_EVENT(event);
  REQUIRE_STREAM(stream);
  return ACL_SUCCESS;
}

aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus *status) {
  REQUIRE_EVENT(event);
  *status = ACL_EVENT_RECORDED_STATUS_COMPLETE;
  return ACL_SUCCESS;
}

aclError aclrtQueryEventWaitStatus(aclrtEvent event, aclrtEventWaitStatus *status) {
  REQUIRE_EVENT(event);
  *status = ACL_EVENT_WAIT_STATUS_COMPLETE;
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeEvent(aclrtEvent event) {
  REQUIRE_EVENT(event);
  emulator::count("aclrtSynchronizeEvent");
  return ACL_SUCCESS;
}

aclError aclrtEventElapsedTime(float *ms, aclrtEvent start, aclrtEvent end) {
  REQUIRE_EVENT(start);
  REQUIRE_EVENT(end);
  const double begun = static_cast<Event *>(start)->recorded_ms, ended = static_cast<Event *>(end)->recorded_ms;
  if (begun < 0 || ended < 0) return fail(ACL_ERROR_RT_PARAM_INVALID, "time between events that were not recorded");
  *ms = static_cast<float>(ended - begun);
  return ACL_SUCCESS;
}

aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t *timestamp_us) {
  REQUIRE_EVENT(event);
  *timestamp_us = static_cast<uint64_t>(static_cast<Event *>(event)->recorded_ms * 1000);
  return ACL_SUCCESS;
}

}  // extern "C"
