// Tensors in this machine's memory, for nybble.h.
#ifndef NYBBLE_TENSOR_H_
#define NYBBLE_TENSOR_H_

#include <tvm/ffi/container/tensor.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "nybble_file.h"

namespace nybble {

namespace ffi = tvm::ffi;

using Tensor = ffi::Tensor;

// "(n, 3, 224, 224)".
inline std::string Show(const std::vector<Extent>& shape) {
  std::string text;
  for (const Extent& extent : shape) {
    text += (text.empty() ? "" : ", ") +
            (extent.name.empty() ? std::to_string(extent.size) : extent.name);
  }
  return "(" + text + ")";
}

// "float32 (1, 3, 224, 224)".
inline std::string Show(const Tensor& tensor) {
  std::vector<Extent> shape;
  for (int64_t extent : tensor.shape()) shape.push_back({extent, ""});
  return ffi::DLDataTypeToString(tensor.dtype()) + " " + Show(shape);
}

namespace detail {

constexpr size_t kCacheLine = 64;  // generated code assumes that every tensor starts on one
constexpr DLDevice kCpu{kDLCPU, 0};

struct Aligned {
  void AllocData(DLTensor* tensor) {
    const size_t bytes = std::max<size_t>(ffi::GetDataSize(*tensor), 1);
    tensor->data =
        std::aligned_alloc(kCacheLine, (bytes + kCacheLine - 1) / kCacheLine * kCacheLine);
    if (!tensor->data) throw std::bad_alloc();
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// Memory of a mapped file, which stays mapped as long as the tensor lives.
struct Mapped {
  std::shared_ptr<const Mapping> file;
  size_t offset;
  void AllocData(DLTensor* tensor) { tensor->data = const_cast<uint8_t*>(file->data() + offset); }
  void FreeData(DLTensor*) {}
};

inline DLDataType Type(const std::string& name) { return ffi::StringToDLDataType(name); }

// The names of "past + length", which a network makes of an empty past too; else none.
inline std::vector<std::string> Addends(const Extent& extent) {
  std::vector<std::string> names(1);
  for (size_t i = 0; i < extent.name.size(); ++i) {
    const char c = extent.name[i];
    if (std::isalnum(static_cast<unsigned char>(c)) || c == '_') {
      names.back() += c;
    } else if (extent.name.compare(i, 3, " + ") == 0) {
      names.emplace_back();
      i += 2;
    } else {
      return {};
    }
  }
  const auto is_number = [](const std::string& name) {
    return name.empty() || std::isdigit(static_cast<unsigned char>(name[0]));
  };
  const bool are_names = std::none_of(names.begin(), names.end(), is_number);
  return names.size() > 1 && are_names ? names : std::vector<std::string>{};
}

inline size_t Bytes(const Tensor& tensor) {
  return ffi::GetDataSize(tensor.numel(), tensor.dtype());
}

}  // namespace detail

// A tensor of that dtype ("float32") with nothing in it yet, as kernels want it in memory.
inline Tensor Empty(const std::string& dtype, const std::vector<int64_t>& shape) {
  return Tensor::FromNDAlloc(detail::Aligned(), ffi::Shape(shape), detail::Type(dtype),
                             detail::kCpu);
}

// A tensor's elements, in row-major order.
template <typename T>
T* Data(const Tensor& tensor) {
  constexpr uint8_t kCode = std::is_floating_point_v<T> ? kDLFloat
                            : std::is_signed_v<T>       ? kDLInt
                                                        : kDLUInt;
  if (tensor.dtype() != DLDataType{kCode, 8 * sizeof(T), 1}) {
    throw Error("Data: the tensor holds " + Show(tensor));
  }
  return static_cast<T*>(tensor.data_ptr());
}

}  // namespace nybble

#endif  // NYBBLE_TENSOR_H_
