// What ran on the emulated device, by name: copies between host and device, waits, operators.
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "emulator.h"

namespace {

std::mutex mutex;
std::map<std::string, uint64_t> counts;

}  // namespace

namespace emulator {

void count(const char *what) {
  std::lock_guard<std::mutex> lock(mutex);
  ++counts[what];
}

}  // namespace emulator

extern "C" {

void emulator_count(const char *what) { emulator::count(what); }

void emulator_reset_counts() {
  std::lock_guard<std::mutex> lock(mutex);
  counts.clear();
}

// Lines "count name", sorted by name, into a buffer; returns the bytes that they need with the closing zero.
size_t emulator_counts(char *buffer, size_t size) {
  std::lock_guard<std::mutex> lock(mutex);
  std::string text;
  for (const auto &entry : counts) text += std::to_string(entry.second) + " " + entry.first + "\n";
  if (text.size() < size) std::memcpy(buffer, text.c_str(), text.size() + 1);
  return text.size() + 1;
}

}  // extern "C"
