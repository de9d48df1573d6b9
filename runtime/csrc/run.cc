// Runs a network that Nybble compiled, from C++, with the TVM runtime alone.
//
//   run NET.so INPUT.raw OUTPUT.raw EXTENT...
//
// INPUT.raw holds the one float32 input of the given extents, OUTPUT.raw receives the first output
// as it stands in memory. Build it against tvm_ffi's headers and link libtvm_ffi; libtvm_runtime
// must be linked although nothing here names it (-Wl,--no-as-needed): it brings the virtual machine.
//
// nybble.h checks the file before it is opened, and picks the variant that this CPU runs best.
#include "nybble.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

// Generated code assumes that every tensor starts on a cache line.
struct CacheLines {
  static constexpr size_t kSize = 64;
  void AllocData(DLTensor* tensor) {
    size_t bytes = ffi::GetDataSize(*tensor);
    tensor->data = std::aligned_alloc(kSize, (bytes + kSize - 1) / kSize * kSize);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

std::streamsize Bytes(const ffi::Tensor& tensor) {
  return static_cast<std::streamsize>(ffi::GetDataSize(tensor.numel(), tensor.dtype()));
}

ffi::Tensor ReadInput(const std::string& path, const std::vector<int64_t>& extents) {
  ffi::Tensor input = ffi::Tensor::FromNDAlloc(CacheLines(), ffi::Shape(extents),
                                               DLDataType{kDLFloat, 32, 1}, DLDevice{kDLCPU, 0});
  std::streamsize bytes = Bytes(input);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(static_cast<char*>(input.data_ptr()), bytes) || file.peek() != EOF) {
    throw std::runtime_error(path + " does not hold exactly " + std::to_string(bytes) + " bytes");
  }
  return input;
}

void Run(const std::vector<std::string>& args) {
  std::vector<int64_t> extents;
  for (size_t i = 3; i < args.size(); ++i) extents.push_back(std::stoll(args[i]));

  constexpr int kPooledAllocator = 2;
  ffi::Module library = nybble::Open(args[0]);
  ffi::Module vm = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  vm->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooledAllocator);

  ffi::Any result = vm->GetFunction("main").value()(ReadInput(args[1], extents));
  auto several = result.as<ffi::Array<ffi::Tensor>>();
  ffi::Tensor output = several ? (*several)[0] : result.cast<ffi::Tensor>();

  std::ofstream file(args[2], std::ios::binary);
  std::streamsize bytes = Bytes(output);
  if (!file.write(static_cast<const char*>(output.data_ptr()), bytes).flush()) {
    throw std::runtime_error("cannot write " + args[2]);
  }
  for (int64_t extent : output.shape()) std::cout << extent << ' ';
  std::cout << '\n';
}

int main(int argc, char** argv) {
  if (argc < 5) {
    std::cerr << "usage: run NET.so INPUT.raw OUTPUT.raw EXTENT...\n";
    return 2;
  }
  try {
    Run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
