// Tensors, scalars and lists as CANN's C interface makes them, and the two halves of an operator's call.
#include "operands.h"

#include <cstring>
#include <map>

#include "emulator.h"

struct aclDataBuffer {
  void *data;
  size_t size;
};

struct aclTensorDesc {
  aclDataType dtype;
  std::vector<int64_t> shape;
  aclFormat format;
  std::string name;
};

struct aclopAttr {};

namespace {

aclTensor as_tensor(const aclTensorDesc &desc, const aclDataBuffer &buffer) {
  aclTensor tensor{desc.shape, std::vector<int64_t>(desc.shape.size()), 0, desc.dtype, buffer.data};
  int64_t stride = 1;
  for (size_t i = desc.shape.size(); i-- > 0; stride *= desc.shape[i]) tensor.strides[i] = stride;
  return tensor;
}

}  // namespace

int64_t aclTensor::numel() const {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  return count;
}

bool aclTensor::is_contiguous() const {
  int64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

namespace emulator {

std::string describe(const aclTensor *tensor) {
  static const std::map<int, std::string> names = {
      {ACL_FLOAT, "float32"}, {ACL_FLOAT16, "float16"}, {ACL_BF16, "bfloat16"}, {ACL_DOUBLE, "float64"},
      {ACL_INT8, "int8"},     {ACL_INT16, "int16"},     {ACL_INT32, "int32"},   {ACL_INT64, "int64"},
      {ACL_UINT8, "uint8"},   {ACL_BOOL, "bool"}};
  if (tensor == nullptr) return "nothing";
  auto found = names.find(tensor->dtype);
  std::string text = found == names.end() ? "dtype " + std::to_string(tensor->dtype) : found->second;
  text += " [";
  for (size_t i = 0; i < tensor->shape.size(); ++i) text += (i ? ", " : "") + std::to_string(tensor->shape[i]);
  return text + "]";
}

aclnnStatus prepare(const char *name, std::function<aclnnStatus()> run, uint64_t *workspace_size,
                    aclOpExecutor **executor) {
  *workspace_size = 0;
  *executor = new aclOpExecutor{name, std::move(run)};
  return ACL_SUCCESS;
}

aclnnStatus execute(aclOpExecutor *executor, aclrtStream stream) {
  const char *name = executor->name.c_str();
  aclnnStatus status;
  if (is_stream(stream)) {
    count(name);
    status = executor->run();
  } else {
    status = fail(ACL_ERROR_RT_STREAM_CONTEXT, "%s on a stream that is not there", name);
  }
  // The caller of an operator that failed may still look at it.
  if (status == ACL_SUCCESS) delete executor;
  return status;
}

}  // namespace emulator

using emulator::fail;

extern "C" {

aclTensor *aclCreateTensor(const int64_t *dims, uint64_t rank, aclDataType dtype, const int64_t *strides,
                           int64_t offset, aclFormat, const int64_t *, uint64_t, void *storage) {
  return new aclTensor{{dims, dims + rank}, {strides, strides + rank}, offset, dtype, storage};
}
aclScalar *aclCreateScalar(void *value, aclDataType dtype) {
  static const std::map<int, size_t> sizes = {{ACL_DOUBLE, 8}, {ACL_INT64, 8}, {ACL_FLOAT, 4}, {ACL_INT32, 4},
                                              {ACL_BOOL, 1},   {ACL_BF16, 2},  {ACL_FLOAT16, 2}};
  auto found = sizes.find(dtype);
  if (found == sizes.end()) {
    fail(ACL_ERROR_INVALID_PARAM, "no scalars of dtype %d", dtype);
    return nullptr;
  }
  auto *scalar = new aclScalar{dtype, {}};
  std::memcpy(scalar->value, value, found->second);
  return scalar;
}
aclIntArray *aclCreateIntArray(const int64_t *values, uint64_t size) { return new aclIntArray{{std::vector<int64_t>(values, values + size)}}; }
aclFloatArray *aclCreateFloatArray(const float *values, uint64_t size) {
  return new aclFloatArray{{std::vector<float>(values, values + size)}};
}
aclBoolArray *aclCreateBoolArray(const bool *values, uint64_t size) {
  return new aclBoolArray{{std::vector<bool>(values, values + size)}};
}
aclTensorList *aclCreateTensorList(const aclTensor *const *values, uint64_t size) {
  return new aclTensorList{{std::vector<const aclTensor *>(values, values + size)}};
}
aclScalarList *aclCreateScalarList(const aclScalar *const *values, uint64_t size) {
  return new aclScalarList{{std::vector<const aclScalar *>(values, values + size)}};
}

aclnnStatus aclDestroyTensor(const aclTensor *tensor) {
  delete tensor;
  return ACL_SUCCESS;
}
aclnnStatus aclDestroyScalar(const aclScalar *scalar) {
  delete scalar;
  return ACL_SUCCESS;
}
aclnnStatus aclDestroyIntArray(const aclIntArray *array) {
  delete array;
  return ACL_SUCCESS;
}
aclnnStatus aclDestroyFloatArray(const aclFloatArray *array) {
  delete array;
  return ACL_SUCCESS;
}
aclnnStatus aclDestroyBoolArray(const aclBoolArray *array) {
  delete array;
  return ACL_SUCCESS;
}
// A list owns what is in it.
aclnnStatus aclDestroyTensorList(const aclTensorList *list) {
  for (const aclTensor *tensor : list->values) delete tensor;
  delete list;
  return ACL_SUCCESS;
}
aclnnStatus aclDestroyScalarList(const aclScalarList *list) {
  for (const aclScalar *scalar : list->values) delete scalar;
  delete list;
  return ACL_SUCCESS;
}

aclnnStatus aclGetViewShape(const aclTensor *tensor, int64_t **dims, uint64_t *rank) {
  *rank = tensor->shape.size();
  *dims = new int64_t[*rank];
  std::copy(tensor->shape.begin(), tensor->shape.end(), *dims);
  return ACL_SUCCESS;
}

// The older interface, which compiles operators by name: torch_npu takes it where an operator has no aclnn form.

aclDataBuffer *aclCreateDataBuffer(void *data, size_t size) { return new aclDataBuffer{data, size}; }
aclError aclDestroyDataBuffer(const aclDataBuffer *buffer) {
  delete buffer;
  return ACL_SUCCESS;
}
aclTensorDesc *aclCreateTensorDesc(aclDataType dtype, int rank, const int64_t *dims, aclFormat format) {
  return new aclTensorDesc{dtype, {dims, dims + rank}, format, ""};
}
void aclDestroyTensorDesc(const aclTensorDesc *desc) { delete desc; }
aclDataType aclGetTensorDescType(const aclTensorDesc *desc) { return desc->dtype; }
aclFormat aclGetTensorDescFormat(const aclTensorDesc *desc) { return desc->format; }
size_t aclGetTensorDescNumDims(const aclTensorDesc *desc) { return desc->shape.size(); }
aclError aclGetTensorDescDimV2(const aclTensorDesc *desc, size_t index, int64_t *extent) {
  if (index >= desc->shape.size()) return fail(ACL_ERROR_INVALID_PARAM, "dimension %zu of a tensor description", index);
  *extent = desc->shape[index];
  return ACL_SUCCESS;
}
void aclSetTensorDescName(aclTensorDesc *desc, const char *name) { desc->name = name; }
aclError aclSetTensorFormat(aclTensorDesc *, aclFormat) { return ACL_SUCCESS; }
aclError aclSetTensorShape(aclTensorDesc *, int, const int64_t *) { return ACL_SUCCESS; }
aclError aclSetTensorPlaceMent(aclTensorDesc *, aclMemType) { return ACL_SUCCESS; }

aclopAttr *aclopCreateAttr() { return new aclopAttr; }
void aclopDestroyAttr(const aclopAttr *attr) { delete attr; }
aclError aclopSetAttrBool(aclopAttr *, const char *, uint8_t) { return ACL_SUCCESS; }
aclError aclopSetAttrInt(aclopAttr *, const char *, int64_t) { return ACL_SUCCESS; }
aclError aclopSetAttrFloat(aclopAttr *, const char *, float) { return ACL_SUCCESS; }
aclError aclopSetAttrString(aclopAttr *, const char *, const char *) { return ACL_SUCCESS; }
aclError aclopSetAttrDataType(aclopAttr *, const char *, aclDataType) { return ACL_SUCCESS; }
aclError aclopSetAttrListBool(aclopAttr *, const char *, int, const uint8_t *) { return ACL_SUCCESS; }
aclError aclopSetAttrListInt(aclopAttr *, const char *, int, const int64_t *) { return ACL_SUCCESS; }
aclError aclopSetAttrListFloat(aclopAttr *, const char *, int, const float *) { return ACL_SUCCESS; }
aclError aclopSetAttrListListInt(aclopAttr *, const char *, int, const int *, const int64_t *const[]) {
  return ACL_SUCCESS;
}

aclError aclopCompileAndExecute(const char *name, int inputs, const aclTensorDesc *const *input_descs,
                                const aclDataBuffer *const *input_data, int outputs,
                                const aclTensorDesc *const *output_descs, aclDataBuffer *const *output_data,
                                const aclopAttr *, aclopEngineType, aclopCompileType, const char *, aclrtStream) {
  std::vector<aclTensor> in, out;
  for (int i = 0; i < inputs; ++i) in.push_back(as_tensor(*input_descs[i], *input_data[i]));
  for (int i = 0; i < outputs; ++i) out.push_back(as_tensor(*output_descs[i], *output_data[i]));
  return emulator::run_named(name, in, out);
}

aclError aclopCompileAndExecuteV2(const char *name, int inputs, aclTensorDesc **input_descs, aclDataBuffer **input_data,
                                  int outputs, aclTensorDesc **output_descs, aclDataBuffer **output_data,
                                  aclopAttr *attr, aclopEngineType engine, aclopCompileType compile, const char *path,
                                  aclrtStream stream) {
  return aclopCompileAndExecute(name, inputs, input_descs, input_data, outputs, output_descs, output_data, attr, engine,
                                compile, path, stream);
}

}  // extern "C"
