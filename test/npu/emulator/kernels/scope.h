// What each reference kernel begins with.
#pragma once

#include "boxed.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"

extern "C" void emulator_count(const char *what);

namespace emulated {

class Scope {
 public:
  explicit Scope(const char *name) {
    c10_npu::getCurrentNPUStream().stream();  // what torch_npu has queued comes first
    emulator_count(name);
  }

 private:
  at::AutoDispatchBelowADInplaceOrView below_autograd_;
  c10::impl::ExcludeDispatchKeyGuard no_autocast_{c10::autocast_dispatch_keyset};
};

}  // namespace emulated
