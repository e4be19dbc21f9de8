// HCCL's C interface as torch_npu calls it, between processes of one machine. Device memory is host memory here, and a
// call is over when it returns, which the streams of a device only promise for later: what runs here in the right order
// may still lack a synchronisation on a device. Functions that torch_npu looks up by name and that are not here (rank
// tables, sub-communicators, zero copy) are reported by torch_npu as missing from CANN.
// The declarations are those that torch_npu ships, so that a definition that does not fit them does not compile.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"
#include "hccl_group.h"
#include "hccl_reduce.h"

namespace {

using emulator::Call;
using emulator::Failure;
using emulator::Group;
using emulator::kBox;
using emulator::kMaxRanks;
using emulator::kStage;

std::mutex guard;
std::map<HcclComm, std::shared_ptr<Group>> groups;

std::shared_ptr<Group> find(HcclComm comm) {
  const std::lock_guard<std::mutex> lock(guard);
  const auto at = groups.find(comm);
  if (at == groups.end()) throw Failure(HCCL_E_PARA, "not a communicator, or one that was destroyed");
  return at->second;
}

HcclResult report(const Failure &failure) {
  emulator::fail(failure.code, "HCCL: %s", failure.what());
  return failure.code;
}

template <typename Body>
HcclResult guarded(const Body &body) {
  try {
    body();
    return HCCL_SUCCESS;
  } catch (const Failure &failure) {
    return report(failure);
  } catch (const std::exception &error) {
    return report(Failure(HCCL_E_INTERNAL, error.what()));
  }
}

void require_device(const char *call, const void *address, uint64_t bytes) {
  if (bytes == 0 || emulator::on_device(address, bytes)) return;
  char text[128];
  std::snprintf(text, sizeof(text), "%s: %p of %llu bytes is not memory of a device", call, address,
                static_cast<unsigned long long>(bytes));
  throw Failure(HCCL_E_PTR, text);
}

// A call in which all ranks take part.
template <typename Body>
HcclResult together(HcclComm comm, aclrtStream stream, const Call &call, const Body &body) {
  return guarded([&] {
    emulator::count((std::string("collective ") + call.name).c_str());
    if (!emulator::is_stream(stream)) throw Failure(HCCL_E_PTR, std::string(call.name) + ": not a stream");
    const std::shared_ptr<Group> group = find(comm);
    const std::lock_guard<std::mutex> lock(group->one_call);
    if (call.root != kMaxRanks && call.root >= group->ranks())
      group->fail(HCCL_E_PARA, call.text() + ": there are " + std::to_string(group->ranks()) + " ranks");
    group->begin(call);
    try {
      // After begin(): the others must hear of a failure, not wait for this rank.
      body(*group, emulator::type_bytes(call.type));
    } catch (const Failure &failure) {
      group->fail(failure.code, failure.what());
    }
  });
}

Call call_of(const char *name, uint64_t count, HcclDataType type, HcclReduceOp op = HCCL_REDUCE_RESERVED,
             uint32_t root = kMaxRanks) {
  Call call;
  std::snprintf(call.name, sizeof(call.name), "%s", name);
  call.type = type;
  call.op = op;
  call.count = count;
  call.root = root;
  return call;
}

// Calls round(first, length) for pieces of `count` elements, `most` a piece; once with length 0 when there are none, so
// that the ranks meet all the same.
template <typename Round>
void in_rounds(uint64_t count, uint64_t most, const Round &round) {
  uint64_t first = 0;
  do {
    const uint64_t length = std::min(most, count - first);
    round(first, length);
    first += length;
  } while (first < count);
}

void copy(char *to, const char *from, uint64_t bytes) {
  if (bytes > 0) std::memmove(to, from, bytes);
}

// All ranks get the reduction, or only `root` does.
void reduce_to(Group &group, uint64_t width, const Call &call, const char *in, char *out) {
  require_device(call.name, in, call.count * width);
  require_device(call.name, out, call.count * width);
  in_rounds(call.count, kStage / width, [&](uint64_t first, uint64_t length) {
    copy(group.stage(group.rank()), in + first * width, length * width);
    group.meet();
    // Each rank reduces its share for all.
    const uint64_t from = length * group.rank() / group.ranks();
    const uint64_t to = length * (group.rank() + 1) / group.ranks();
    emulator::reduce(group, call.type, call.op, from * width, to - from, group.result() + from * width);
    group.meet();
    if (call.root == kMaxRanks || call.root == group.rank())
      copy(out + first * width, group.result(), length * width);
  });
}

// Rank j's part of rank i's stage is what i has for j.
void scatter_from_all(Group &group, uint64_t width, const char *send, const uint64_t *send_bytes,
                      const uint64_t *send_at, char *receive, const uint64_t *receive_bytes,
                      const uint64_t *receive_at) {
  const uint64_t part = kStage / group.ranks() / width * width;
  group.meet();
  uint64_t longest = 0;
  for (uint32_t from = 0; from < group.ranks(); ++from) {
    for (uint32_t to = 0; to < group.ranks(); ++to) {
      const uint64_t sent = group.call_of(from).send[to];
      const uint64_t wanted = group.call_of(to).receive[from];
      if (sent != wanted)
        group.fail(HCCL_E_PARA, "all_to_all: rank " + std::to_string(from) + " sends " + std::to_string(sent) +
                                    " bytes to rank " + std::to_string(to) + ", which expects " +
                                    std::to_string(wanted));
      longest = std::max(longest, sent);
    }
  }
  const uint32_t me = group.rank();
  for (uint32_t rank = 0; rank < group.ranks(); ++rank) {
    require_device("all_to_all", send + send_at[rank], send_bytes[rank]);
    require_device("all_to_all", receive + receive_at[rank], receive_bytes[rank]);
  }
  in_rounds(longest, part, [&](uint64_t first, uint64_t) {
    const auto piece = [&](uint64_t bytes) { return bytes > first ? std::min(part, bytes - first) : 0; };
    for (uint32_t to = 0; to < group.ranks(); ++to)
      copy(group.stage(me) + to * part, send + send_at[to] + first, piece(send_bytes[to]));
    group.meet();
    for (uint32_t from = 0; from < group.ranks(); ++from)
      copy(receive + receive_at[from] + first, group.stage(from) + me * part, piece(receive_bytes[from]));
    group.meet();
  });
}

// One message between this rank and another, in pieces that fit a box. It is over when the receiver has all of it.
class Message {
 public:
  Message(Group &group, const HcclSendRecvItem &item)
      : group_(group),
        sends_(item.sendRecvType == HCCL_SEND),
        peer_(item.remoteRank),
        at_(static_cast<char *>(item.buf)),
        bytes_(item.count * emulator::type_bytes(item.dataType)) {
    if (peer_ >= group.ranks())
      throw Failure(HCCL_E_PARA, "there is no rank " + std::to_string(peer_) + " among " +
                                     std::to_string(group.ranks()) + " ranks");
    require_device(sends_ ? "send" : "recv", at_, bytes_);
  }

  bool done() const { return started_ && done_ == bytes_ && (!sends_ || !on_its_way()); }
  uint32_t peer() const { return peer_; }
  bool after(const Message &earlier) const { return sends_ == earlier.sends_ && peer_ == earlier.peer_; }
  std::string text() const {
    return std::string(sends_ ? "send" : "recv") + " of " + std::to_string(bytes_) + " bytes";
  }
  bool possible() const { return sends_ ? !on_its_way() : on_its_way(); }

  void step() {
    emulator::Box &box = sends_ ? group_.box(group_.rank(), peer_) : group_.box(peer_, group_.rank());
    if (sends_) {
      box.total = bytes_;
      box.size = std::min(kBox, bytes_ - done_);
      copy(group_.box_content(group_.rank(), peer_), at_ + done_, box.size);
    } else {
      if (box.total != bytes_)
        group_.fail(HCCL_E_PARA, "rank " + std::to_string(peer_) + " sends " + std::to_string(box.total) +
                                     " bytes to rank " + std::to_string(group_.rank()) + ", which expects " +
                                     std::to_string(bytes_));
      copy(at_ + done_, group_.box_content(peer_, group_.rank()), box.size);
    }
    done_ += box.size;
    started_ = true;
    (sends_ ? box.posted : box.taken).fetch_add(1);
    group_.ring();
  }

 private:
  bool on_its_way() const {
    const emulator::Box &box = sends_ ? group_.box(group_.rank(), peer_) : group_.box(peer_, group_.rank());
    return box.posted.load() != box.taken.load();
  }

  Group &group_;
  bool sends_;
  uint32_t peer_;
  char *at_;
  uint64_t bytes_;
  uint64_t done_ = 0;
  bool started_ = false;  // a message of no bytes is one empty piece
};

// All of them at once, those between the same ranks one after the other.
HcclResult exchange(HcclComm comm, aclrtStream stream, const HcclSendRecvItem *items, uint32_t count) {
  return guarded([&] {
    for (uint32_t i = 0; i < count; ++i) 
      emulator::count(items[i].sendRecvType == HCCL_SEND ? "collective send" : "collective recv");
    if (!emulator::is_stream(stream)) throw Failure(HCCL_E_PTR, "send or recv: not a stream");
    const std::shared_ptr<Group> group = find(comm);
    const std::lock_guard<std::mutex> lock(group->one_call);
    std::vector<Message> messages;
    for (uint32_t i = 0; i < count; ++i) messages.emplace_back(*group, items[i]);
    const auto next = [&]() -> Message * {
      for (size_t i = 0; i < messages.size(); ++i) {
        const auto earlier = [&](const Message &other) { return !other.done() && messages[i].after(other); };
        if (!messages[i].done() && messages[i].possible() &&
            std::none_of(messages.begin(), messages.begin() + static_cast<std::ptrdiff_t>(i), earlier))
          return &messages[i];
      }
      return nullptr;
    };
    const auto done = [](const Message &message) { return message.done(); };
    const auto over = [&] { return std::all_of(messages.begin(), messages.end(), done); };
    const auto owes = [&](uint32_t rank) {
      return std::any_of(messages.begin(), messages.end(),
                         [&](const Message &message) { return !message.done() && message.peer() == rank; });
    };
    while (!over()) {
      if (Message *message = next()) {
        message->step();
        continue;
      }
      const auto open = std::find_if_not(messages.begin(), messages.end(), done);
      if (open == messages.end()) break;
      group->wait([&] { return over() || next() != nullptr; }, owes, open->text());
    }
  });
}

HcclResult join(const HcclRootInfo *root, uint32_t ranks, uint32_t rank, HcclComm *comm) {
  return guarded([&] {
    if (root == nullptr || comm == nullptr) throw Failure(HCCL_E_PTR, "a null pointer instead of root info or result");
    const auto group = std::make_shared<Group>(*root, ranks, rank);
    const std::lock_guard<std::mutex> lock(guard);
    groups[group.get()] = group;
    *comm = group.get();
  });
}

}  // namespace

extern "C" {

HcclResult HcclGetRootInfo(HcclRootInfo *rootInfo) {
  return guarded([&] {
    if (rootInfo == nullptr) throw Failure(HCCL_E_PTR, "a null pointer instead of root info");
    Group::invite(rootInfo);
  });
}

HcclResult HcclCommInitRootInfo(uint32_t nRanks, const HcclRootInfo *rootInfo, uint32_t rank, HcclComm *comm) {
  return join(rootInfo, nRanks, rank, comm);
}

// torch_npu's headers differ in whether it is declared, and in the const of `config`: nothing of it matters here.
HcclResult HcclCommInitRootInfoConfig(uint32_t nRanks, const HcclRootInfo *rootInfo, uint32_t rank,
                                      const HcclCommConfig *, HcclComm *comm) {
  return join(rootInfo, nRanks, rank, comm);
}

HcclResult HcclCommInitAll(uint32_t, int32_t *, HcclComm *) {
  return report(Failure(HCCL_E_NOT_SUPPORT, "the emulator has no communicator over several devices of one process"));
}

// The options that a communicator can have: buffer size and determinism, both without meaning here.
uint32_t HcclGetCommConfigCapability() { return HCCL_COMM_CONFIG_COMM_NAME; }

// Sums are always made in the same order.
HcclResult HcclSetConfig(HcclConfig config, HcclConfigValue) {
  if (config == HCCL_DETERMINISTIC) return HCCL_SUCCESS;
  return report(Failure(HCCL_E_NOT_SUPPORT, "HcclSetConfig: only determinism can be set"));
}

HcclResult HcclGetCommName(HcclComm comm, char *commName) {
  return guarded([&] { std::snprintf(commName, COMM_NAME_MAX_LENGTH, "%s", find(comm)->name()); });
}

HcclResult HcclGetRankSize(HcclComm comm, uint32_t *rankSize) {
  return guarded([&] { *rankSize = find(comm)->ranks(); });
}

HcclResult HcclGetRankId(HcclComm comm, uint32_t *rank) {
  return guarded([&] { *rank = find(comm)->rank(); });
}

HcclResult HcclGetCommAsyncError(HcclComm comm, HcclResult *asyncError) {
  return guarded([&] { *asyncError = find(comm)->failed(); });
}

HcclResult HcclCommDestroy(HcclComm comm) {
  return guarded([&] {
    const std::shared_ptr<Group> group = find(comm);
    const std::lock_guard<std::mutex> calls(group->one_call);
    const std::lock_guard<std::mutex> lock(guard);
    groups.erase(comm);
  });
}

HcclResult HcclBarrier(HcclComm comm, aclrtStream stream) {
  return together(comm, stream, call_of("barrier", 0, HCCL_DATA_TYPE_INT8), [](Group &group, uint64_t) {
    group.meet();
    group.meet();
  });
}

HcclResult HcclAllReduce(void *sendBuf, void *recvBuf, uint64_t count, HcclDataType dataType, HcclReduceOp op,
                         HcclComm comm, aclrtStream stream) {
  const Call call = call_of("all_reduce", count, dataType, op);
  return together(comm, stream, call, [&](Group &group, uint64_t width) {
    reduce_to(group, width, call, static_cast<char *>(sendBuf), static_cast<char *>(recvBuf));
  });
}

HcclResult HcclReduce(void *sendBuf, void *recvBuf, uint64_t count, HcclDataType dataType, HcclReduceOp op,
                      uint32_t root, HcclComm comm, aclrtStream stream) {
  const Call call = call_of("reduce", count, dataType, op, root);
  return together(comm, stream, call, [&](Group &group, uint64_t width) {
    reduce_to(group, width, call, static_cast<char *>(sendBuf), static_cast<char *>(recvBuf));
  });
}

HcclResult HcclBroadcast(void *buf, uint64_t count, HcclDataType dataType, uint32_t root, HcclComm comm,
                         aclrtStream stream) {
  return together(comm, stream, call_of("broadcast", count, dataType, HCCL_REDUCE_RESERVED, root),
                  [&](Group &group, uint64_t width) {
                    char *const data = static_cast<char *>(buf);
                    require_device("broadcast", data, count * width);
                    const bool gives = group.rank() == root;
                    in_rounds(count, kStage / width, [&](uint64_t first, uint64_t length) {
                      if (gives) copy(group.stage(root), data + first * width, length * width);
                      group.meet();
                      if (!gives) copy(data + first * width, group.stage(root), length * width);
                      group.meet();
                    });
                  });
}

HcclResult HcclAllGather(void *sendBuf, void *recvBuf, uint64_t sendCount, HcclDataType dataType, HcclComm comm,
                         aclrtStream stream) {
  return together(comm, stream, call_of("all_gather", sendCount, dataType), [&](Group &group, uint64_t width) {
    char *const out = static_cast<char *>(recvBuf);
    require_device("all_gather", sendBuf, sendCount * width);
    require_device("all_gather", out, group.ranks() * sendCount * width);
    in_rounds(sendCount, kStage / width, [&](uint64_t first, uint64_t length) {
      copy(group.stage(group.rank()), static_cast<char *>(sendBuf) + first * width, length * width);
      group.meet();
      for (uint32_t from = 0; from < group.ranks(); ++from)
        copy(out + (from * sendCount + first) * width, group.stage(from), length * width);
      group.meet();
    });
  });
}

HcclResult HcclReduceScatter(void *sendBuf, void *recvBuf, uint64_t recvCount, HcclDataType dataType, HcclReduceOp op,
                             HcclComm comm, aclrtStream stream) {
  return together(comm, stream, call_of("reduce_scatter", recvCount, dataType, op), [&](Group &group, uint64_t width) {
    const char *const in = static_cast<char *>(sendBuf);
    require_device("reduce_scatter", in, group.ranks() * recvCount * width);
    require_device("reduce_scatter", recvBuf, recvCount * width);
    const uint64_t part = kStage / group.ranks() / width;
    in_rounds(recvCount, part, [&](uint64_t first, uint64_t length) {
      for (uint32_t to = 0; to < group.ranks(); ++to)
        copy(group.stage(group.rank()) + to * part * width, in + (to * recvCount + first) * width, length * width);
      group.meet();
      emulator::reduce(group, dataType, op, group.rank() * part * width, length,
                       static_cast<char *>(recvBuf) + first * width);
      group.meet();
    });
  });
}

HcclResult HcclScatter(void *sendBuf, void *recvBuf, uint64_t recvCount, HcclDataType dataType, uint32_t root,
                       HcclComm comm, aclrtStream stream) {
  return together(comm, stream, call_of("scatter", recvCount, dataType, HCCL_REDUCE_RESERVED, root),
                  [&](Group &group, uint64_t width) {
                    const uint64_t part = kStage / group.ranks() / width;
                    require_device("scatter", recvBuf, recvCount * width);
                    if (group.rank() == root) require_device("scatter", sendBuf, group.ranks() * recvCount * width);
                    in_rounds(recvCount, part, [&](uint64_t first, uint64_t length) {
                      if (group.rank() == root)
                        for (uint32_t to = 0; to < group.ranks(); ++to)
                          copy(group.stage(root) + to * part * width,
                               static_cast<char *>(sendBuf) + (to * recvCount + first) * width, length * width);
                      group.meet();
                      copy(static_cast<char *>(recvBuf) + first * width,
                           group.stage(root) + group.rank() * part * width, length * width);
                      group.meet();
                    });
                  });
}

HcclResult HcclAlltoAllV(const void *sendBuf, const void *sendCounts, const void *sdispls, HcclDataType sendType,
                         const void *recvBuf, const void *recvCounts, const void *rdispls, HcclDataType recvType,
                         HcclComm comm, aclrtStream stream) {
  Call call = call_of("all_to_all", 0, sendType);
  uint64_t send_at[kMaxRanks];
  uint64_t receive_at[kMaxRanks];
  const HcclResult found = guarded([&] {
    const uint64_t send_width = emulator::type_bytes(sendType);
    const uint64_t receive_width = emulator::type_bytes(recvType);
    const uint32_t ranks = find(comm)->ranks();
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      call.send[rank] = static_cast<const uint64_t *>(sendCounts)[rank] * send_width;
      call.receive[rank] = static_cast<const uint64_t *>(recvCounts)[rank] * receive_width;
      send_at[rank] = static_cast<const uint64_t *>(sdispls)[rank] * send_width;
      receive_at[rank] = static_cast<const uint64_t *>(rdispls)[rank] * receive_width;
    }
  });
  if (found != HCCL_SUCCESS) return found;
  return together(comm, stream, call, [&](Group &group, uint64_t width) {
    scatter_from_all(group, width, static_cast<const char *>(sendBuf), call.send, send_at,
                     static_cast<char *>(const_cast<void *>(recvBuf)), call.receive, receive_at);
  });
}

HcclResult HcclAlltoAll(const void *sendBuf, uint64_t sendCount, HcclDataType sendType, const void *recvBuf,
                        uint64_t recvCount, HcclDataType recvType, HcclComm comm, aclrtStream stream) {
  uint64_t sends[kMaxRanks];
  uint64_t receives[kMaxRanks];
  uint64_t send_at[kMaxRanks];
  uint64_t receive_at[kMaxRanks];
  for (uint32_t rank = 0; rank < kMaxRanks; ++rank) {
    sends[rank] = sendCount;
    receives[rank] = recvCount;
    send_at[rank] = rank * sendCount;
    receive_at[rank] = rank * recvCount;
  }
  return HcclAlltoAllV(sendBuf, sends, send_at, sendType, recvBuf, receives, receive_at, recvType, comm, stream);
}

HcclResult HcclSend(void *sendBuf, uint64_t count, HcclDataType dataType, uint32_t destRank, HcclComm comm,
                    aclrtStream stream) {
  const HcclSendRecvItem item{HCCL_SEND, sendBuf, count, dataType, destRank};
  return exchange(comm, stream, &item, 1);
}

HcclResult HcclRecv(void *recvBuf, uint64_t count, HcclDataType dataType, uint32_t srcRank, HcclComm comm,
                    aclrtStream stream) {
  const HcclSendRecvItem item{HCCL_RECV, recvBuf, count, dataType, srcRank};
  return exchange(comm, stream, &item, 1);
}

HcclResult HcclBatchSendRecv(HcclSendRecvItem *sendRecvInfo, uint32_t itemNum, HcclComm comm, aclrtStream stream) {
  return exchange(comm, stream, sendRecvInfo, itemNum);
}

}  // extern "C"
