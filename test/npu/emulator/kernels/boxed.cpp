// Puts a kernel of torch's CPU in the place of each kernel that torch_npu has for an NPU. Device memory being host
// memory, the tensors are handed over as they lie. torch_npu's own code still does everything else: allocation, views,
// copies, conversions, autograd, autocast, collectives, and the operators of the npu namespace.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "boxed.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"

extern "C" void emulator_count(const char *what);

namespace emulated {

namespace {

// What stays torch_npu's own besides views and the operators below: it is about memory, not about numbers.
const std::set<std::string> kNative = {
    "aten::_copy_from", "aten::_copy_from_and_resize", "aten::_has_compatible_shallow_copy_type", "aten::_local_scalar_dense",
    "aten::_pin_memory", "aten::_to_copy", "aten::clone", "aten::contiguous", "aten::copy_", "aten::empty", "aten::empty_like",
    "aten::empty_strided", "aten::equal_storage", "aten::is_pinned", "aten::is_set_to", "aten::item", "aten::new_empty",
    "aten::new_empty_strided", "aten::pin_memory", "aten::record_stream", "aten::resize_", "aten::resize_as_", "aten::set_",
    "aten::to"};

// Operators that torch makes of others, each of which has its autograd; torch_npu has kernels for some of them as well.
bool is_composite(const c10::OperatorHandle &op) {
  return op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) &&
         !op.hasKernelForDispatchKey(c10::DispatchKey::AutogradPrivateUse1);
}

// What gives its input another shape, or another look at its memory, is torch_npu's own.
bool is_view(const c10::OperatorHandle &op) {
  const c10::FunctionSchema &schema = op.schema();
  if (op.hasTag(at::Tag::inplace_view)) return true;
  for (const auto &result : schema.returns()) {
    if (result.alias_info() != nullptr && !result.alias_info()->isWrite()) return true;
  }
  return false;
}

c10::optional<c10::Device> npu_of(const c10::IValue &value) {
  if (value.isTensor()) {
    const at::Tensor &tensor = value.toTensor();
    if (tensor.defined() && tensor.device().is_privateuseone()) return tensor.device();
  } else if (value.isDevice()) {
    if (value.toDevice().is_privateuseone()) return value.toDevice();
  } else if (value.isList()) {
    for (const c10::IValue &item : value.toListRef()) {
      if (auto device = npu_of(item)) return device;
    }
  }
  return c10::nullopt;
}

// One call of an operator: its arguments on the CPU, and which of them have to be brought back.
class Call {
 public:
  Call(const c10::OperatorHandle &op, torch::jit::Stack *stack) : op_(op), stack_(stack) {
    const size_t size = op.schema().arguments().size();
    given_.assign(stack->end() - static_cast<ptrdiff_t>(size), stack->end());
    torch::jit::drop(*stack, size);
    for (const c10::IValue &value : given_) {
      if (auto device = npu_of(value)) {
        if (!device_ || !device_->has_index()) device_ = device;
      }
    }
    if (!device_ || !device_->has_index()) device_ = c10::Device(c10::kPrivateUse1, c10_npu::getCurrentNPUStream().device_index());
  }

  void run() {
    count_call();
    std::vector<c10::IValue> arguments;
    for (size_t i = 0; i < given_.size(); ++i) arguments.push_back(to_cpu(given_[i], op_.schema().arguments()[i]));
    std::vector<c10::IValue> results;
    try {
      results = call(arguments);
    } catch (const c10::Error &error) {
      // torch's CPU lacks many half-precision kernels; an NPU has them.
      if (std::string(error.what()).find("'Half'") == std::string::npos) throw;
      results = call_in_float(arguments);
    }
    bring_back_outs(arguments);
    const auto &returns = op_.schema().returns();
    for (size_t i = 0; i < results.size(); ++i) {
      const c10::IValue *same = aliased(returns[i]);
      stack_->push_back(same != nullptr ? *same : to_npu(results[i]));
    }
  }

 private:
  void count_call() {
    bool on_mask = false, in_double = false;
    for (const c10::IValue &value : given_) {
      for (const at::Tensor &tensor : tensors(value)) {
        on_mask |= value.isList() && tensor.scalar_type() == at::kBool;
        in_double |= tensor.device().is_privateuseone() && tensor.scalar_type() == at::kDouble;
      }
    }
    std::string name = c10::toString(op_.operator_name());
    // aten::index and its like have an output of known size unless they are given a mask.
    const bool indexes = op_.schema().name().rfind("aten::index", 0) == 0 || op_.schema().name() == "aten::_index_put_impl_";
    const bool dynamic = op_.hasTag(at::Tag::dynamic_output_shape) || op_.hasTag(at::Tag::data_dependent_output);
    if (indexes ? on_mask : dynamic) name += " [waits for the NPU: what it returns depends on values]";
    if (in_double) name += " [float64]";
    emulator_count(name.c_str());
  }

  static std::vector<at::Tensor> tensors(const c10::IValue &value) {
    std::vector<at::Tensor> found;
    if (value.isTensor()) {
      if (value.toTensor().defined()) found.push_back(value.toTensor());
    } else if (value.isList()) {
      for (const c10::IValue &item : value.toListRef()) {
        for (const at::Tensor &tensor : tensors(item)) found.push_back(tensor);
      }
    }
    return found;
  }

  // A CPU tensor among those of an NPU is what a real NPU refuses too, unless it holds one number or indexes.
  void refuse_cpu(const at::Tensor &tensor, const c10::Argument &argument) const {
    const bool allowed = tensor.dim() == 0 || argument.name() == "indices" || !any_npu_tensor();
    TORCH_CHECK(allowed, c10::toString(op_.operator_name()), ": expected all tensors to be on the same device, but ", argument.name(),
                " is on the CPU and others are on ", *device_);
  }

  bool any_npu_tensor() const {
    for (const c10::IValue &value : given_) {
      for (const at::Tensor &tensor : tensors(value)) {
        if (tensor.device().is_privateuseone()) return true;
      }
    }
    return false;
  }

  c10::IValue to_cpu(const c10::IValue &value, const c10::Argument &argument) {
    if (value.isTensor()) {
      const at::Tensor &tensor = value.toTensor();
      if (!tensor.defined()) return value;
      if (!tensor.device().is_privateuseone()) {
        refuse_cpu(tensor, argument);
        return value;
      }
      TORCH_CHECK(tensor.device() == *device_, c10::toString(op_.operator_name()), ": tensors on ", tensor.device(), " and on ", *device_);
      if (argument.is_out() && tensor.numel() == 0) return at::empty({0}, tensor.options().device(at::kCPU));
      return as_cpu(tensor);
    }
    if (value.isDevice() && value.toDevice().is_privateuseone()) return c10::Device(at::kCPU);
    if (value.isGenerator() && value.toGenerator().defined()) {
      TORCH_CHECK(!value.toGenerator().device().is_privateuseone(), c10::toString(op_.operator_name()),
                  ": the emulated NPU draws from the CPU's default generator, an NPU generator is not emulated");
    }
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const c10::IValue &item : value.toListRef()) list.push_back(to_cpu(item, argument).toTensor());
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<c10::optional<at::Tensor>> list;
      for (const c10::IValue &item : value.toListRef()) {
        const bool given = item.isTensor() && item.toTensor().defined();
        list.push_back(given ? c10::make_optional(to_cpu(item, argument).toTensor()) : c10::nullopt);
      }
      return list;
    }
    return value;
  }

  std::vector<c10::IValue> call(const std::vector<c10::IValue> &arguments) const {
    torch::jit::Stack stack(arguments.begin(), arguments.end());
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    op_.callBoxed(&stack);
    return {stack.begin(), stack.end()};
  }

  // An argument that is a dtype, given or optional, arrives as a number.
  static bool is_dtype(const c10::Argument &argument) {
    c10::TypePtr type = argument.real_type();
    if (type->kind() == c10::TypeKind::OptionalType) type = type->castRaw<c10::OptionalType>()->getElementType();
    return type->kind() == c10::TypeKind::ScalarTypeType;
  }

  // Computes in float32 what was given in float16; results have the dtype of the inputs again.
  std::vector<c10::IValue> call_in_float(const std::vector<c10::IValue> &arguments) const {
    std::vector<c10::IValue> wide;
    at::ScalarType dtype = at::kHalf;  // of the results, unless an argument names another
    for (size_t i = 0; i < arguments.size(); ++i) {
      wide.push_back(widen(arguments[i]));
      if (!is_dtype(op_.schema().arguments()[i]) || !arguments[i].isInt()) continue;
      dtype = arguments[i].toScalarType();
      if (dtype == at::kHalf) wide.back() = at::kFloat;
    }
    std::vector<c10::IValue> results = call(wide);
    for (size_t i = 0; i < arguments.size(); ++i) {
      const auto &argument = op_.schema().arguments()[i];
      if (argument.alias_info() == nullptr || !argument.alias_info()->isWrite()) continue;
      const auto narrow = tensors(arguments[i]), computed = tensors(wide[i]);
      for (size_t k = 0; k < narrow.size(); ++k) {
        if (narrow[k].scalar_type() == at::kHalf) narrow[k].copy_(computed[k]);
      }
    }
    for (c10::IValue &result : results) {
      if (result.isTensor() && result.toTensor().defined() && result.toTensor().scalar_type() == at::kFloat) {
        result = result.toTensor().to(dtype);
      }
    }
    return results;
  }

  static c10::IValue widen(const c10::IValue &value) {
    const auto wider = [](const at::Tensor &tensor) {
      return tensor.defined() && tensor.scalar_type() == at::kHalf ? tensor.to(at::kFloat) : tensor;
    };
    if (value.isTensor()) return wider(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor &tensor : value.toTensorVector()) list.push_back(wider(tensor));
      return list;
    }
    return value;
  }

  // An empty out= tensor is there to be made as large as the result.
  void bring_back_outs(const std::vector<c10::IValue> &arguments) const {
    for (size_t i = 0; i < given_.size(); ++i) {
      if (!op_.schema().arguments()[i].is_out() || !given_[i].isTensor()) continue;
      const at::Tensor &out = given_[i].toTensor(), &computed = arguments[i].toTensor();
      if (!out.device().is_privateuseone() || computed.sizes() == out.sizes()) continue;
      out.resize_(computed.sizes());
      as_cpu(out).copy_(computed);
    }
  }

  const c10::IValue *aliased(const c10::Argument &result) const {
    if (result.alias_info() == nullptr) return nullptr;
    for (size_t i = 0; i < given_.size(); ++i) {
      const auto *info = op_.schema().arguments()[i].alias_info();
      if (info != nullptr && info->beforeSets() == result.alias_info()->beforeSets()) return &given_[i];
    }
    return nullptr;
  }

  c10::IValue to_npu(const c10::IValue &value) const {
    if (value.isTensor()) {
      const at::Tensor &tensor = value.toTensor();
      return tensor.defined() ? emulated::to_npu(tensor, *device_) : tensor;
    }
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor &tensor : value.toTensorVector()) list.push_back(to_npu(tensor).toTensor());
      return list;
    }
    return value;
  }

  const c10::OperatorHandle &op_;
  torch::jit::Stack *stack_;
  std::vector<c10::IValue> given_;
  c10::optional<c10::Device> device_;
};

void boxed(const c10::OperatorHandle &op, c10::DispatchKeySet, torch::jit::Stack *stack) {
  // Copies that torch_npu has queued for its second thread come before this operator.
  c10_npu::getCurrentNPUStream().stream();
  Call(op, stack).run();
}

// Such an operator is made of its parts on the NPU too.
void composite(const c10::OperatorHandle &op, c10::DispatchKeySet, torch::jit::Stack *stack) {
  emulator_count(c10::toString(op.operator_name()).c_str());
  op.callBoxedForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd, *stack);
}

class Quiet : public c10::WarningHandler {
 public:
  void process(const c10::Warning &) override {}
};

// Registrations last as long as the process: torch ends before static objects of this library would.
std::vector<c10::RegistrationHandleRAII> &registrations() {
  static auto *handles = new std::vector<c10::RegistrationHandleRAII>;
  return *handles;
}

const bool registered = [] {
  Quiet quiet;  // each of them replaces a kernel, about which torch warns
  c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  auto &dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName &name : dispatcher.getAllOpNames()) {
    auto op = dispatcher.findSchema(name);
    if (!op || name.getNamespace() != "aten" || !op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1)) continue;
    if (kNative.count(name.name) || is_view(*op)) continue;
    // Without a CPU kernel torch_npu's own stays, which calls CANN: there is a reference for it, or it fails by name.
    const bool composite_op = is_composite(*op);
    if (!composite_op && (has_reference(name) || !op->hasComputedKernelForDispatchKey(c10::DispatchKey::CPU))) continue;
    auto kernel = composite_op ? c10::KernelFunction::makeFromBoxedFunction<&composite>()
                                    : c10::KernelFunction::makeFromBoxedFunction<&boxed>();
    registrations().push_back(dispatcher.registerImpl(name, c10::DispatchKey::PrivateUse1, std::move(kernel), c10::nullopt,
                                                      nullptr, "emulated NPU"));
  }
  return true;
}();

}  // namespace

at::Tensor as_cpu(const at::Tensor &tensor) {
  at::Tensor view = at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU).pinned_memory(c10::nullopt));
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) view.unsafeGetTensorImpl()->set_wrapped_number(true);
  return view;
}

at::Tensor to_npu(const at::Tensor &tensor, c10::Device device) {
  at::Tensor moved = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(device));
  as_cpu(moved).copy_(tensor);
  return moved;
}

}  // namespace emulated
