#include "hccl_group.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace emulator {
namespace {

constexpr uint32_t kWriting = UINT32_MAX;  // of Shared::failed
constexpr uint64_t kPage = 4096;

using Clock = std::chrono::steady_clock;

// What stands in HCCL's root info: the memory is a file without a name, reached through the process that made it.
struct Invitation {
  char magic[16];
  int32_t pid;
  int32_t fd;
  uint64_t started;
  uint64_t token[2];
};
constexpr char kMagic[16] = "npu emulator";

// When a process was started, in clock ticks since boot; 0 if it is not there, or waits only for its parent to notice
// that it has ended. With the start a process id that was given to another process is told apart.
uint64_t start_of(int32_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  // The name, field 2, is in parentheses and may hold anything; the state is field 3, the start field 22 (proc(5)).
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos || name_end + 2 >= text.size()) return 0;
  const char state = text[name_end + 2];
  if (state == 'Z' || state == 'X' || state == 'x') return 0;
  size_t at = name_end + 2;
  for (int field = 3; field < 22; ++field) {
    at = text.find(' ', at);
    if (at == std::string::npos) return 0;
    ++at;
  }
  return std::strtoull(text.c_str() + at, nullptr, 10);
}

double seconds_of(const char *variable, double otherwise) {
  const char *text = std::getenv(variable);
  if (text == nullptr) return otherwise;
  char *end = nullptr;
  const double value = std::strtod(text, &end);
  // HCCL takes 0 as "never"; here nothing waits for ever.
  return end != text && *end == '\0' && value > 0 ? value : otherwise;
}

std::string plain(double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", seconds);
  return text;
}

}  // namespace

struct Seat {
  enum State : uint32_t { kEmpty = 0, kClaimed = 1, kTaken = 2, kLeft = 3 };
  std::atomic<uint32_t> state;
  int32_t pid;
  uint64_t started;
  std::atomic<uint64_t> meetings;  // at how many meetings this rank has arrived
  Call call;
};

// Begins the memory of a communicator; stages, result and boxes follow. All of it is zero at first.
struct Shared {
  uint64_t token[2];
  std::atomic<uint32_t> ranks;
  std::atomic<uint32_t> bell;    // changes whenever a rank has done what another may wait for
  std::atomic<uint32_t> failed;  // HcclResult
  char failure[1024];
  Seat seats[kMaxRanks];
  Box boxes[kMaxRanks * kMaxRanks];
};

// How long to wait, and for whom.
struct Group::Patience {
  const char *variable;  // that sets the seconds
  double seconds;        // unless it is set
  bool for_all;          // the end of any rank counts, not only of those that owe something
};

constexpr uint64_t kHead = (sizeof(Shared) + kPage - 1) / kPage * kPage;
static_assert(sizeof(Invitation) <= HCCL_ROOT_INFO_BYTES, "the invitation has to fit HCCL's root info");
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free,
              "atomics between processes must not use a lock of one of them");

const char *type_name(HcclDataType type) {
  static const char *const names[] = {"int8",  "int16",  "int32",  "float16", "float32", "int64",
                                      "uint64", "uint8", "uint16", "uint32",  "float64", "bfloat16"};
  const auto at = static_cast<uint32_t>(type);
  return at < std::size(names) ? names[at] : "an unknown type";
}

uint64_t type_bytes(HcclDataType type) {
  static const uint64_t bytes[] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2};
  const auto at = static_cast<uint32_t>(type);
  if (at >= std::size(bytes)) throw Failure(HCCL_E_PARA, "HCCL has no data type " + std::to_string(at));
  return bytes[at];
}

std::string Call::text() const {
  static const char *const ops[] = {"sum", "prod", "max", "min"};
  if (count == 0 && op == HCCL_REDUCE_RESERVED && root == kMaxRanks) return name;
  std::string out = std::string(name) + " of " + std::to_string(count) + " " + type_name(type);
  if (static_cast<uint32_t>(op) < std::size(ops)) out += std::string(" (") + ops[op] + ")";
  if (root < kMaxRanks) out += ", root " + std::to_string(root);
  return out;
}

void Group::invite(HcclRootInfo *root) {
  // A file without a name is gone when the last process that has it is: nothing is left behind, however they end. It is
  // not bounded by the size of /dev/shm either.
  const int fd = memfd_create("npu-emulator-hccl", MFD_CLOEXEC);
  if (fd < 0) throw Failure(HCCL_E_SYSCALL, std::string("memfd_create: ") + std::strerror(errno));
  // Pages that nobody writes take no memory.
  const uint64_t most = kHead + (kMaxRanks + 1) * kStage + kMaxRanks * kMaxRanks * kBox;
  Invitation invitation{};
  std::memcpy(invitation.magic, kMagic, sizeof(kMagic));
  invitation.pid = getpid();
  invitation.fd = fd;
  invitation.started = start_of(invitation.pid);
  if (ftruncate(fd, static_cast<off_t>(most)) != 0 ||
      getrandom(invitation.token, sizeof(invitation.token), 0) != sizeof(invitation.token) ||
      pwrite(fd, invitation.token, sizeof(invitation.token), 0) != sizeof(invitation.token)) {
    const std::string why = std::strerror(errno);
    close(fd);
    throw Failure(HCCL_E_SYSCALL, "shared memory: " + why);
  }
  std::memset(root, 0, sizeof(*root));
  std::memcpy(root->internal, &invitation, sizeof(invitation));
}

Group::Group(const HcclRootInfo &root, uint32_t ranks, uint32_t rank) : ranks_(ranks), rank_(rank) {
  Invitation invitation;
  std::memcpy(&invitation, root.internal, sizeof(invitation));
  if (std::memcmp(invitation.magic, kMagic, sizeof(kMagic)) != 0)
    throw Failure(HCCL_E_PARA, "the root info is not one that HcclGetRootInfo has made");
  if (ranks == 0 || ranks > kMaxRanks || rank >= ranks)
    throw Failure(HCCL_E_PARA, "rank " + std::to_string(rank) + " of " + std::to_string(ranks) +
                                   "; the emulator takes 1 to " + std::to_string(kMaxRanks) + " ranks");
  const std::string path = "/proc/" + std::to_string(invitation.pid) + "/fd/" + std::to_string(invitation.fd);
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  uint64_t token[2] = {};
  if (fd < 0 || pread(fd, token, sizeof(token), 0) != sizeof(token) ||
      std::memcmp(token, invitation.token, sizeof(token)) != 0) {
    if (fd >= 0) close(fd);
    throw Failure(HCCL_E_TCP_CONNECT, "the process that made the root info (" + std::to_string(invitation.pid) +
                                          ") has ended, or has closed this communicator");
  }
  bytes_ = kHead + (ranks + 1) * kStage + uint64_t{ranks} * ranks * kBox;
  void *memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  const std::string why = std::strerror(errno);
  close(fd);
  if (memory == MAP_FAILED) throw Failure(HCCL_E_MEMORY, "shared memory: " + why);
  shared_ = static_cast<Shared *>(memory);
  char name[40];
  std::snprintf(name, sizeof(name), "emulated_%016llx", static_cast<unsigned long long>(token[0]));
  name_ = name;
  try {
    sit_down();
  } catch (...) {
    munmap(shared_, bytes_);
    throw;
  }
  // Everybody has it mapped; nobody opens it again.
  if (invitation.pid == getpid()) close(invitation.fd);
}

Group::~Group() {
  shared_->seats[rank_].state.store(Seat::kLeft);
  ring();
  munmap(shared_, bytes_);
}

void Group::sit_down() {
  uint32_t nobody = 0;
  if (!shared_->ranks.compare_exchange_strong(nobody, ranks_) && nobody != ranks_)
    fail(HCCL_E_PARA, "rank " + std::to_string(rank_) + " takes the communicator for one of " + std::to_string(ranks_) +
                          " ranks, another rank for one of " + std::to_string(nobody));
  Seat &mine = shared_->seats[rank_];
  uint32_t empty = Seat::kEmpty;
  if (!mine.state.compare_exchange_strong(empty, Seat::kClaimed))
    fail(HCCL_E_PARA, "two processes, " + std::to_string(mine.pid) + " and " + std::to_string(getpid()) +
                          ", both say that they are rank " + std::to_string(rank_));
  mine.pid = getpid();
  mine.started = start_of(mine.pid);
  mine.state.store(Seat::kTaken);
  ring();
  const auto absent = [this](uint32_t rank) { return shared_->seats[rank].state.load() < Seat::kTaken; };
  const auto complete = [&] {
    for (uint32_t rank = 0; rank < ranks_; ++rank)
      if (absent(rank)) return false;
    return true;
  };
  // A rank that has come and died is as bad as one that never came.
  wait_until(complete, absent, "the start of the communicator", {"HCCL_CONNECT_TIMEOUT", 120, true});
}

char *Group::stage(uint32_t rank) const { return reinterpret_cast<char *>(shared_) + kHead + rank * kStage; }

char *Group::result() const { return stage(ranks_); }

Box &Group::box(uint32_t from, uint32_t to) const { return shared_->boxes[from * kMaxRanks + to]; }

char *Group::box_content(uint32_t from, uint32_t to) const {
  return stage(ranks_ + 1) + (uint64_t{from} * ranks_ + to) * kBox;
}

void Group::begin(const Call &call) {
  shared_->seats[rank_].call = call;
  compare_ = true;
}

const Call &Group::call_of(uint32_t rank) const { return shared_->seats[rank].call; }

void Group::meet() {
  const uint64_t here = ++meetings_;
  shared_->seats[rank_].meetings.store(here);
  ring();
  const auto owes = [&](uint32_t rank) { return shared_->seats[rank].meetings.load() < here; };
  const auto ready = [&] {
    for (uint32_t rank = 0; rank < ranks_; ++rank)
      if (owes(rank)) return false;
    return true;
  };
  wait(ready, owes, shared_->seats[rank_].call.text());
  if (compare_) {
    compare_ = false;
    compare_calls();
  }
}

void Group::compare_calls() const {
  const Call &first = call_of(0);
  for (uint32_t rank = 1; rank < ranks_; ++rank) {
    const Call &other = call_of(rank);
    if (std::strcmp(first.name, other.name) != 0 || first.type != other.type || first.op != other.op ||
        first.count != other.count || first.root != other.root)
      fail(HCCL_E_PARA, "the ranks do not call the same: rank 0 " + first.text() + ", rank " + std::to_string(rank) +
                            " " + other.text());
  }
}

void Group::wait(const std::function<bool()> &ready, const std::function<bool(uint32_t)> &owes,
                 const std::string &doing) {
  wait_until(ready, owes, doing, {"HCCL_EXEC_TIMEOUT", 600, false});
}

void Group::wait_until(const std::function<bool()> &ready, const std::function<bool(uint32_t)> &owes,
                       const std::string &doing, const Patience &patience) {
  constexpr auto kLook = std::chrono::milliseconds(50);  // between looks at who is alive
  const double seconds = seconds_of(patience.variable, patience.seconds);
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  auto look = Clock::now() + kLook;
  while (true) {
    const uint32_t heard = shared_->bell.load();
    if (ready()) return;
    throw_if_failed();
    if (Clock::now() >= look) {
      look = Clock::now() + kLook;
      for (uint32_t rank = 0; rank < ranks_; ++rank) {
        const Seat &seat = shared_->seats[rank];
        const uint32_t state = seat.state.load();
        const bool gone = state == Seat::kLeft || (state == Seat::kTaken && start_of(seat.pid) != seat.started);
        // Asked after the look at the process: what it did before it ended counts.
        if (rank != rank_ && gone && (patience.for_all || owes(rank)) && !ready())
          fail(HCCL_E_REMOTE, who(rank) + (state == Seat::kLeft ? " has closed the communicator" : " has ended") +
                                  "; rank " + std::to_string(rank_) + " waits for it in " + doing);
      }
      if (Clock::now() >= end) {
        std::string missing;
        for (uint32_t rank = 0; rank < ranks_; ++rank)
          if (rank != rank_ && owes(rank)) missing += (missing.empty() ? "" : ", ") + who(rank);
        fail(HCCL_E_TIMEOUT, "rank " + std::to_string(rank_) + " has waited " + plain(seconds) + " s (" +
                                 patience.variable + ") in " + doing + " for " + missing);
      }
    }
    timespec pause{0, std::chrono::nanoseconds(kLook).count()};
    syscall(SYS_futex, &shared_->bell, FUTEX_WAIT, heard, &pause, nullptr, 0);
  }
}

void Group::ring() const {
  shared_->bell.fetch_add(1);
  syscall(SYS_futex, &shared_->bell, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

std::string Group::who(uint32_t rank) const {
  const Seat &seat = shared_->seats[rank];
  const bool empty = seat.state.load() < Seat::kTaken;
  return "rank " + std::to_string(rank) + (empty ? " (no process yet)" : " (process " + std::to_string(seat.pid) + ")");
}

void Group::fail(HcclResult code, const std::string &text) const {
  uint32_t well = HCCL_SUCCESS;
  if (shared_->failed.compare_exchange_strong(well, kWriting)) {
    std::snprintf(shared_->failure, sizeof(shared_->failure), "%s", text.c_str());
    shared_->failed.store(static_cast<uint32_t>(code));
    ring();
  }
  throw_if_failed();
  throw Failure(code, text);  // not reached: there is a failure by now
}

void Group::throw_if_failed() const {
  const uint32_t code = shared_->failed.load();
  if (code == HCCL_SUCCESS) return;
  if (code == kWriting) {
    usleep(1000);  // a rank that is killed right here leaves no text
    if (shared_->failed.load() == kWriting) throw Failure(HCCL_E_REMOTE, "another rank has failed");
    return throw_if_failed();
  }
  throw Failure(static_cast<HcclResult>(code), shared_->failure);
}

HcclResult Group::failed() const {
  const uint32_t code = shared_->failed.load();
  return code == kWriting ? HCCL_E_REMOTE : static_cast<HcclResult>(code);
}

}  // namespace emulator
