// The ranks of one communicator on one machine: their shared memory, how they meet, and how they fail together.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>

#include "hccl/hccl.h"

namespace emulator {

constexpr uint32_t kMaxRanks = 16;            // of one communicator; the emulated machine has 8 devices
constexpr uint64_t kStage = 4 * 1024 * 1024;  // bytes of one rank in a round of a collective
constexpr uint64_t kBox = 256 * 1024;         // bytes on their way from one rank to another

// Thrown inside the library; the C interface turns it into its code.
struct Failure : std::runtime_error {
  Failure(HcclResult code_, const std::string &text) : std::runtime_error(text), code(code_) {}
  HcclResult code;
};

// What a rank wants of the others. All ranks have to want the same.
struct Call {
  char name[24] = "";
  HcclDataType type = HCCL_DATA_TYPE_INT8;
  HcclReduceOp op = HCCL_REDUCE_RESERVED;  // RESERVED: nothing is reduced
  uint64_t count = 0;
  uint32_t root = kMaxRanks;         // kMaxRanks: no rank is special
  uint64_t send[kMaxRanks] = {};     // all_to_all only: bytes for each rank
  uint64_t receive[kMaxRanks] = {};  // all_to_all only: bytes from each rank

  std::string text() const;  // "all_reduce of 12 float32 (sum)"
};

const char *type_name(HcclDataType type);
uint64_t type_bytes(HcclDataType type);  // throws Failure for a type that HCCL does not have

// A message on its way from one rank to one other.
struct Box {
  std::atomic<uint64_t> posted;  // pieces that the sender has put in
  std::atomic<uint64_t> taken;   // pieces that the receiver has got out
  uint64_t total;                // bytes of the whole message
  uint64_t size;                 // bytes of the piece that lies in the box
};

struct Seat;
struct Shared;

// One rank's membership of a communicator.
class Group {
 public:
  // Makes the memory of a new communicator and writes into `root` how the other processes find it.
  static void invite(HcclRootInfo *root);

  // Takes a seat and waits for the others, HCCL_CONNECT_TIMEOUT seconds at most.
  Group(const HcclRootInfo &root, uint32_t ranks, uint32_t rank);
  ~Group();
  Group(const Group &) = delete;
  Group &operator=(const Group &) = delete;

  uint32_t ranks() const { return ranks_; }
  uint32_t rank() const { return rank_; }
  const char *name() const { return name_.c_str(); }

  // Memory that all ranks see. A stage is written by its rank only. It may be written once the last meeting of the call
  // before is over; the result, once the first meeting of this call is.
  char *stage(uint32_t rank) const;
  char *result() const;
  Box &box(uint32_t from, uint32_t to) const;
  char *box_content(uint32_t from, uint32_t to) const;

  // Says what this rank wants; the next meeting compares it with what the others want, so a call has two at least: the
  // others may still be reading after the first.
  void begin(const Call &call);
  const Call &call_of(uint32_t rank) const;

  // Waits until every rank has come here as often as this one.
  void meet();

  // Waits until `ready`, while the ranks for which `owes` holds are alive and HCCL_EXEC_TIMEOUT seconds are not over.
  void wait(const std::function<bool()> &ready, const std::function<bool(uint32_t)> &owes, const std::string &doing);
  void ring() const;  // others look again at what they wait for

  // Ends the communicator for all ranks, with this reason unless there is one already.
  [[noreturn]] void fail(HcclResult code, const std::string &text) const;
  HcclResult failed() const;

  std::mutex one_call;  // a rank makes one call at a time

 private:
  void sit_down();
  struct Patience;
  void wait_until(const std::function<bool()> &ready, const std::function<bool(uint32_t)> &owes,
                  const std::string &doing, const Patience &patience);
  void throw_if_failed() const;
  void compare_calls() const;
  std::string who(uint32_t rank) const;

  Shared *shared_ = nullptr;
  uint64_t bytes_ = 0;
  uint32_t ranks_;
  uint32_t rank_;
  uint64_t meetings_ = 0;
  bool compare_ = false;
  std::string name_;
};

}  // namespace emulator
