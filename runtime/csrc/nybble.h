// Runs the libraries that Nybble writes, in C++ and without Python.
//
//   nybble::Network network("net.so");                       // checked, chosen, loaded
//   for (const nybble::Port& port : network.manifest().inputs) …
//   nybble::Tensor x = nybble::Empty("float32", {1, 3, 224, 224});
//   std::copy(pixels.begin(), pixels.end(), nybble::Data<float>(x));
//   std::vector<nybble::Tensor> outputs = network.Run({x});
//
// Every byte is checked against the file's SHA-256 before the dynamic linker sees it. Of a file
// with several variants the last one that this CPU can run is opened, or the one that is named. A
// network may be called from any number of threads at a time. What goes wrong is a nybble::Error.
// Linux only.
//
// Needs tvm_ffi's headers, C++17, and libtvm_ffi and libtvm_runtime to link; the latter although
// nothing here names it (-Wl,--no-as-needed): it brings the virtual machine.
#ifndef NYBBLE_H_
#define NYBBLE_H_

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "nybble_load.h"

namespace nybble {

struct Options {
  std::string variant;  // the target of the variant to open; else what NYBBLE_VARIANT names
  int threads = 0;      // of the kernels; else what TVM_NUM_THREADS says, else one a core
};

// What a file's variants say about themselves. Nothing of the file is executed.
inline std::vector<Manifest> Inspect(const std::string& path) {
  std::vector<Manifest> found;
  for (Variant& one : detail::ReadFile(detail::Mapping(path), path)) {
    found.push_back(std::move(one.manifest));
  }
  return found;
}

// A loaded network. Copies are the same network.
class Network {
 public:
  explicit Network(const std::string& path, const Options& options = {})
      : state_(std::make_shared<State>()) {
    const detail::Mapping file(path);
    const std::vector<Variant> variants = detail::ReadFile(file, path);
    const char* named = variants.size() > 1 ? std::getenv("NYBBLE_VARIANT") : nullptr;
    const std::string wanted = options.variant.empty() && named ? named : options.variant;
    try {
      const Variant& chosen = detail::Choose(variants, wanted);
      const auto [folder, name] = detail::Split(path);
      state_->manifest = chosen.manifest;
      state_->threads = detail::Threads(options.threads);
      state_->parameters = detail::LoadParameters(chosen.manifest, folder);
      state_->library = chosen.offset ? detail::LoadPart(file, chosen)
                                      : detail::LoadLibrary(detail::Fresh(folder, name));
      state_->idle.push_back(Machine());
    } catch (const ffi::Error& error) {
      throw Error(path + ": the TVM runtime refuses it: " + error.what());
    } catch (const Error& error) {
      throw Error(path + ": " + error.what());
    }
  }

  const Manifest& manifest() const { return state_->manifest; }
  int threads() const { return state_->threads; }

  // One tensor per output, from one per input, both in the manifest's order.
  std::vector<Tensor> Run(const std::vector<Tensor>& inputs) const {
    const std::vector<Tensor> bound = Bind(inputs);
    return Emptied(bound).empty() ? Call(bound) : Nothing(bound);
  }

  // The same by name.
  std::map<std::string, Tensor> Run(const std::map<std::string, Tensor>& inputs) const {
    std::vector<Tensor> ordered;
    for (const Port& port : manifest().inputs) {
      auto found = inputs.find(port.name);
      if (found == inputs.end()) throw Error("the input '" + port.name + "' is missing");
      ordered.push_back(found->second);
    }
    if (inputs.size() != ordered.size()) throw Error("there are more inputs than the network has");
    const std::vector<Tensor> results = Run(ordered);
    std::map<std::string, Tensor> named;
    for (size_t i = 0; i < results.size(); ++i)
      named.emplace(manifest().outputs[i].name, results[i]);
    return named;
  }

 private:
  using Extents = std::map<std::string, int64_t>;

  struct State {
    Manifest manifest;
    int threads = 1;
    std::vector<Tensor> parameters;
    std::optional<ffi::Module> library;
    std::mutex lock;
    std::vector<ffi::Function> idle;        // virtual machines that nobody runs on
    std::set<std::vector<int64_t>> shapes;  // of inputs, that have come lately
  };

  // The entry of a further virtual machine; all share the library and its constants.
  ffi::Function Machine() const {
    constexpr int kPooledAllocator = 2;
    auto vm = (*state_->library)->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
    vm->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooledAllocator);
    if (state_->parameters.empty()) return vm->GetFunction("main").value();
    std::vector<ffi::AnyView> bound{"main", "bound", true};  // a name of its own for main with them
    bound.insert(bound.end(), state_->parameters.begin(), state_->parameters.end());
    ffi::Any nothing;
    vm->GetFunction("save_function")
        .value()
        .CallPacked(bound.data(), static_cast<int32_t>(bound.size()), &nothing);
    return vm->GetFunction("bound").value();
  }

  // The allocator keeps every buffer under its size; a network that is called with ever other
  // shapes would keep the buffers of all of them.
  void Remember(const std::vector<Tensor>& inputs) const {
    constexpr size_t kMost = 8;
    std::vector<int64_t> shapes;
    for (const Tensor& input : inputs) {
      shapes.insert(shapes.end(), input.shape().begin(), input.shape().end());
    }
    std::lock_guard<std::mutex> hold(state_->lock);
    if (!state_->shapes.insert(shapes).second || state_->shapes.size() <= kMost) return;
    state_->shapes.clear();
    ffi::Function::GetGlobalRequired("vm.builtin.memory_manager.clear")();
  }

  ffi::Function Take() const {
    {
      std::lock_guard<std::mutex> hold(state_->lock);
      if (!state_->idle.empty()) {
        ffi::Function main = std::move(state_->idle.back());
        state_->idle.pop_back();
        return main;
      }
    }
    return Machine();
  }

  void Return(ffi::Function main) const {
    std::lock_guard<std::mutex> hold(state_->lock);
    state_->idle.push_back(std::move(main));
  }

  // The inputs, checked, where kernels can read them.
  std::vector<Tensor> Bind(const std::vector<Tensor>& inputs) const {
    const std::vector<Port>& ports = manifest().inputs;
    if (inputs.size() != ports.size()) {
      throw Error(std::to_string(inputs.size()) + " inputs given, the network has " +
                  std::to_string(ports.size()));
    }
    std::vector<Tensor> bound;
    Extents known;
    for (size_t i = 0; i < ports.size(); ++i) {
      Check(ports[i], inputs[i], known);
      bound.push_back(inputs[i]);
    }
    for (size_t i = 0; i < ports.size(); ++i) {
      CheckSums(ports[i], inputs[i], known);
      if (inputs[i].IsAligned(detail::kCacheLine)) continue;
      bound[i] = Empty(ports[i].dtype, {inputs[i].shape().begin(), inputs[i].shape().end()});
      std::memcpy(bound[i].data_ptr(), inputs[i].data_ptr(), detail::Bytes(bound[i]));
    }
    return bound;
  }

  static void Check(const Port& port, const Tensor& tensor, Extents& known) {
    const auto shape = tensor.shape();
    bool fits = tensor.dtype() == detail::Type(port.dtype) && tensor.IsContiguous() &&
                tensor.device().device_type == kDLCPU && shape.size() == port.shape.size();
    for (size_t i = 0; fits && i < port.shape.size(); ++i) {
      const Extent& want = port.shape[i];
      if (!detail::Addends(want).empty()) continue;  // CheckSums, once all sizes are known
      fits = (want.name.empty() ? want.size : known.emplace(want.name, shape[i]).first->second) ==
             shape[i];
    }
    if (!fits) throw Misfit(port, tensor);
  }

  static void CheckSums(const Port& port, const Tensor& tensor, const Extents& known) {
    for (size_t i = 0; i < port.shape.size(); ++i) {
      const std::vector<std::string> names = detail::Addends(port.shape[i]);
      int64_t rest = names.empty() ? 0 : tensor.shape()[i];
      for (const std::string& name : names) rest -= known.count(name) ? known.at(name) : rest + 1;
      if (rest) throw Misfit(port, tensor);
    }
  }

  static Error Misfit(const Port& port, const Tensor& tensor) {
    return Error("input '" + port.name + "': expected " + port.dtype + " " + Show(port.shape) +
                 ", contiguous in this machine's memory, got " + Show(tensor));
  }

  std::vector<Tensor> Call(const std::vector<Tensor>& bound) const {
    std::vector<ffi::AnyView> arguments(bound.begin(), bound.end());
    ffi::Any result;
    detail::SizePool(state_->threads);
    Remember(bound);
    ffi::Function main = Take();
    try {
      main.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
    } catch (const ffi::Error& error) {
      throw Error(std::string("the network fails: ") + error.what());
    }
    Return(std::move(main));
    if (auto one = result.as<Tensor>()) return {*one};
    auto several = result.cast<ffi::Array<Tensor>>();
    return {several.begin(), several.end()};
  }

  // The open sizes that are 0 and leave nothing to compute; a past that the network appends to is
  // not among them.
  std::set<std::string> Emptied(const std::vector<Tensor>& inputs) const {
    std::set<std::string> zeros;
    for (size_t i = 0; i < inputs.size(); ++i) {
      for (size_t k = 0; k < inputs[i].shape().size(); ++k) {
        if (!inputs[i].shape()[k]) zeros.insert(manifest().inputs[i].shape[k].name);
      }
    }
    if (zeros.empty()) return zeros;
    std::set<std::string> alone, appended;
    for (const Port& port : manifest().outputs) {
      for (const Extent& extent : port.shape) {
        alone.insert(extent.name);
        for (const std::string& name : detail::Addends(extent)) appended.insert(name);
      }
    }
    for (const std::string& name : appended) {
      if (!alone.count(name)) zeros.erase(name);
    }
    return zeros;
  }

  // The outputs for inputs without elements: they have none either. Kernels are not made for loops
  // that never turn, so the network runs with 1 in place of each 0; that tells the other extents.
  std::vector<Tensor> Nothing(const std::vector<Tensor>& inputs) const {
    const std::set<std::string> zeros = Emptied(inputs);
    std::vector<Tensor> stand_ins, outputs;
    for (size_t i = 0; i < inputs.size(); ++i) {
      std::vector<int64_t> shape(inputs[i].shape().begin(), inputs[i].shape().end());
      for (size_t k = 0; k < shape.size(); ++k) {
        if (zeros.count(manifest().inputs[i].shape[k].name)) shape[k] = 1;
      }
      stand_ins.push_back(Empty(manifest().inputs[i].dtype, shape));
      std::memset(stand_ins[i].data_ptr(), 0, detail::Bytes(stand_ins[i]));
    }
    for (const Port& port : manifest().outputs) CheckEmpty(port, zeros);
    const std::vector<Tensor> results = Call(stand_ins);
    for (size_t i = 0; i < results.size(); ++i) {
      std::vector<int64_t> shape(results[i].shape().begin(), results[i].shape().end());
      const Port& port = manifest().outputs[i];
      for (size_t k = 0; k < shape.size(); ++k) {
        if (zeros.count(port.shape[k].name)) shape[k] = 0;
      }
      outputs.push_back(Empty(port.dtype, shape));
    }
    return outputs;
  }

  static void CheckEmpty(const Port& port, const std::set<std::string>& zeros) {
    bool is_empty = false, is_sure = true;
    for (const Extent& extent : port.shape) {
      is_empty |= zeros.count(extent.name) != 0;
      std::string word;
      for (char c : extent.name + " ") {  // "(h + 1) // 2" is computed from h
        const bool goes_on = std::isalnum(static_cast<unsigned char>(c)) || c == '_';
        if (!goes_on && zeros.count(word)) is_sure &= word == extent.name;
        word = goes_on ? word + c : "";
      }
    }
    if (is_empty && is_sure) return;
    throw Error("an input has no elements, but output '" + port.name + "' " + Show(port.shape) +
                " is not empty with it, or not sure to be");
  }

  std::shared_ptr<State> state_;
};

}  // namespace nybble

#endif  // NYBBLE_H_
