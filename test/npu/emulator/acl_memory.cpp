// Memory of the devices: host memory with a guard page behind it, an account of it per device, and checks of every copy.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

#include "emulator.h"

namespace {

constexpr size_t kAlignment = 512;

struct Block {
  size_t size;    // asked for
  size_t mapped;  // with the guard page; 0 for a piece mapped into a reserved range
  int32_t device;
};

struct Physical {
  int file;
  size_t size;
  int32_t device;
};

std::recursive_mutex mutex;
std::map<uintptr_t, Block> blocks;        // what may be read and written, by address
std::map<uintptr_t, size_t> reserved;     // address ranges of expandable segments, by address
std::set<Physical *> physicals;           // memory of expandable segments
std::map<uintptr_t, size_t> host_blocks;  // page-locked host memory
size_t used[emulator::kDevices];

using Lock = std::lock_guard<std::recursive_mutex>;

size_t page_size() {
  static const size_t size = sysconf(_SC_PAGESIZE);
  return size;
}

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

// Bytes of one device: 64 GiB as on an Ascend 910B2, or less for tests of a device that is full.
size_t capacity() {
  const char *text = std::getenv("EMULATED_NPU_MEMORY_BYTES");
  return text == nullptr ? size_t{64} << 30 : std::strtoull(text, nullptr, 10);
}

bool take(int32_t device, size_t size) {
  if (used[device] + size > capacity()) return false;
  used[device] += size;
  return true;
}

// What was never written reads as NaN or -1, not as the zeros that a test might take for a result.
void fill(void *address, size_t size) { std::memset(address, 0xFF, size); }

const Block *find(const void *address, size_t size) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  auto next = blocks.upper_bound(begin);
  if (next == blocks.begin()) return nullptr;
  auto first = std::prev(next);
  uintptr_t end = first->first + first->second.size;
  if (begin >= end) return nullptr;
  // Pieces of an expandable segment lie side by side.
  while (end < begin + size && next != blocks.end() && next->first == end) {
    end += next->second.size;
    ++next;
  }
  return begin + size <= end ? &first->second : nullptr;
}

const char *name(aclrtMemcpyKind kind) {
  switch (kind) {
    case ACL_MEMCPY_HOST_TO_HOST:
      return "copy host to host";
    case ACL_MEMCPY_HOST_TO_DEVICE:
      return "copy host to device";
    case ACL_MEMCPY_DEVICE_TO_HOST:
      return "copy device to host";
    default:
      return "copy device to device";
  }
}

aclError copy(void *to, size_t room, const void *from, size_t size, aclrtMemcpyKind kind) {
  if (size > room) {
    return emulator::fail(ACL_ERROR_RT_PARAM_INVALID, "%s of %zu bytes into %zu", name(kind), size, room);
  }
  const bool from_device = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  const bool to_device = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (emulator::on_device(from, size) != from_device || emulator::on_device(to, size) != to_device) {
    return emulator::fail(ACL_ERROR_RT_PARAM_INVALID, "%s of %zu bytes, but %p to %p is something else", name(kind),
                          size, from, to);
  }
  emulator::count(name(kind));
  std::memmove(to, from, size);
  return ACL_SUCCESS;
}

}  // namespace

namespace emulator {

bool on_device(const void *address, size_t size) {
  Lock lock(mutex);
  return find(address, size) != nullptr;
}

}  // namespace emulator

using emulator::fail;

extern "C" {

aclError aclrtMalloc(void **address, size_t size, aclrtMemMallocPolicy) {
  Lock lock(mutex);
  const int32_t device = emulator::current_device();
  if (size == 0) return fail(ACL_ERROR_RT_PARAM_INVALID, "allocation of 0 bytes");
  const size_t room = round_up(size, kAlignment);
  if (!take(device, room)) {
    return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "device %d is full: %zu of %zu bytes in use, %zu more wanted", device,
                used[device], capacity(), room);
  }
  const size_t body = round_up(room, page_size());
  void *mapped = mmap(nullptr, body + page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    used[device] -= room;
    return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "this machine is out of memory");
  }
  mprotect(static_cast<char *>(mapped) + body, page_size(), PROT_NONE);
  fill(mapped, room);
  blocks[reinterpret_cast<uintptr_t>(mapped)] = {room, body + page_size(), device};
  *address = mapped;
  return ACL_SUCCESS;
}

aclError aclrtMallocAlign32(void **address, size_t size, aclrtMemMallocPolicy policy) {
  return aclrtMalloc(address, size, policy);
}

aclError aclrtFree(void *address) {
  Lock lock(mutex);
  auto found = blocks.find(reinterpret_cast<uintptr_t>(address));
  if (found == blocks.end() || found->second.mapped == 0) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "%p is freed twice, or was never allocated", address);
  }
  used[found->second.device] -= found->second.size;
  munmap(address, found->second.mapped);
  blocks.erase(found);
  return ACL_SUCCESS;
}

aclError aclrtGetMemInfo(aclrtMemAttr, size_t *free_bytes, size_t *total) {
  Lock lock(mutex);
  *total = capacity();
  *free_bytes = capacity() - used[emulator::current_device()];
  return ACL_SUCCESS;
}

// Expandable segments: a range of addresses into which memory is mapped piece by piece

aclError aclrtReserveMemAddress(void **address, size_t size, size_t, void *, uint64_t) {
  void *range = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "no range of %zu addresses is left", size);
  Lock lock(mutex);
  reserved[reinterpret_cast<uintptr_t>(range)] = size;
  *address = range;
  return ACL_SUCCESS;
}

aclError aclrtReleaseMemAddress(void *address) {
  Lock lock(mutex);
  auto found = reserved.find(reinterpret_cast<uintptr_t>(address));
  if (found == reserved.end()) return fail(ACL_ERROR_RT_PARAM_INVALID, "range %p is released twice", address);
  munmap(address, found->second);
  reserved.erase(found);
  return ACL_SUCCESS;
}

aclError aclrtMallocPhysical(aclrtDrvMemHandle *handle, size_t size, const aclrtPhysicalMemProp *wanted, uint64_t) {
  Lock lock(mutex);
  const auto device = static_cast<int32_t>(wanted->location.id);
  if (!take(device, size)) {
    return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "device %d is full: %zu of %zu bytes in use, %zu more wanted", device,
                used[device], capacity(), size);
  }
  const int file = memfd_create("emulated_npu", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, static_cast<off_t>(size)) != 0) {
    used[device] -= size;
    return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "this machine is out of memory");
  }
  auto *physical = new Physical{file, size, device};
  physicals.insert(physical);
  *handle = physical;
  return ACL_SUCCESS;
}

aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
  Lock lock(mutex);
  auto *physical = static_cast<Physical *>(handle);
  if (physicals.erase(physical) == 0) return fail(ACL_ERROR_RT_PARAM_INVALID, "memory %p is freed twice", handle);
  used[physical->device] -= physical->size;
  close(physical->file);
  delete physical;
  return ACL_SUCCESS;
}

aclError aclrtMapMem(void *address, size_t size, size_t offset, aclrtDrvMemHandle handle, uint64_t) {
  Lock lock(mutex);
  auto *physical = static_cast<Physical *>(handle);
  if (physicals.count(physical) == 0) return fail(ACL_ERROR_RT_PARAM_INVALID, "memory %p is not there", handle);
  const auto begin = reinterpret_cast<uintptr_t>(address);
  auto range = reserved.upper_bound(begin);
  if (range == reserved.begin() || begin + size > std::prev(range)->first + std::prev(range)->second) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "%p is mapped outside of every reserved range", address);
  }
  if (mmap(address, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, physical->file, static_cast<off_t>(offset)) ==
      MAP_FAILED) {
    return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "this machine is out of memory");
  }
  fill(address, size);
  blocks[begin] = {size, 0, physical->device};
  return ACL_SUCCESS;
}

aclError aclrtUnmapMem(void *address) {
  Lock lock(mutex);
  auto found = blocks.find(reinterpret_cast<uintptr_t>(address));
  if (found == blocks.end() || found->second.mapped != 0) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "%p is unmapped twice, or was never mapped", address);
  }
  // The addresses stay reserved; touching them from now on is a fault.
  mmap(address, found->second.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  blocks.erase(found);
  return ACL_SUCCESS;
}

// Page-locked host memory

aclError aclrtMallocHost(void **address, size_t size) {
  Lock lock(mutex);
  if (posix_memalign(address, page_size(), size) != 0) {
    return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "this machine is out of memory");
  }
  host_blocks[reinterpret_cast<uintptr_t>(*address)] = size;
  return ACL_SUCCESS;
}

aclError aclrtFreeHost(void *address) {
  Lock lock(mutex);
  if (host_blocks.erase(reinterpret_cast<uintptr_t>(address)) == 0) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "host memory %p is freed twice", address);
  }
  std::free(address);
  return ACL_SUCCESS;
}

// Copies

aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t size, aclrtMemcpyKind kind) {
  return copy(to, room, from, size, kind);
}

aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, aclrtMemcpyKind kind,
                          aclrtStream stream) {
  if (!emulator::is_stream(stream)) return fail(ACL_ERROR_RT_STREAM_CONTEXT, "copy on a stream that is not there");
  return copy(to, room, from, size, kind);
}

aclError aclrtMemset(void *address, size_t room, int32_t value, size_t size) {
  if (size > room || !emulator::on_device(address, size)) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "memset of %zu bytes outside of the device's memory", size);
  }
  std::memset(address, value, size);
  return ACL_SUCCESS;
}

aclError aclrtMemsetAsync(void *address, size_t room, int32_t value, size_t size, aclrtStream) {
  return aclrtMemset(address, room, value, size);
}

}  // extern "C"
