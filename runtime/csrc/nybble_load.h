// From a checked file to code and constants in memory, for nybble.h.
#ifndef NYBBLE_LOAD_H_
#define NYBBLE_LOAD_H_

#include <sched.h>
#include <sys/mman.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "nybble_tensor.h"

namespace nybble::detail {

// A name under which the dynamic linker has opened nothing yet: it returns an open library of the
// same name without looking at the file.
inline std::string Fresh(const std::string& folder, const std::string& name) {
  static std::atomic<unsigned> loads{0};
  std::string detour;
  for (unsigned n = ++loads; n; n >>= 1) detour += n & 1 ? "./" : "/";
  return folder + "/" + detour + name;
}

inline std::pair<std::string, std::string> Split(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return {".", path};
  return {slash ? path.substr(0, slash) : "/", path.substr(slash + 1)};
}

inline ffi::Module LoadLibrary(const std::string& path) {
  auto load = ffi::Function::GetGlobalRequired("ffi.Module.load_from_file.so");
  auto module = load(path, "so").cast<ffi::Module>();
  // Tensors and functions of the library may outlive the network.
  ffi::Function::GetGlobalRequired("ffi.ModuleGlobalsAdd")(module);
  return module;
}

// Copies a variant to a file in memory (or an unlinked temporary one) and opens that.
inline ffi::Module LoadPart(const Mapping& whole, const Variant& variant) {
  int file = memfd_create("nybble", MFD_CLOEXEC);
  if (file < 0) {
    const char* folder = std::getenv("TMPDIR");
    std::string name = std::string(folder && *folder ? folder : "/tmp") + "/nybbleXXXXXX";
    file = mkstemp(name.data());
    if (file < 0) throw Error("cannot make " + name + " to open the variant");
    unlink(name.c_str());
  }
  struct Closing {
    int file;
    ~Closing() { close(file); }
  } closing{file};
  for (size_t done = 0; done < variant.size;) {
    const ssize_t wrote = write(file, whole.data() + variant.offset + done, variant.size - done);
    if (wrote <= 0)
      throw Error("cannot copy the variant " + variant.manifest.target + " to open it");
    done += static_cast<size_t>(wrote);
  }
  return LoadLibrary(Fresh("/proc/self/fd", std::to_string(file)));
}

// The constants in the file beside the library, each checked and left where it is.
inline std::vector<Tensor> LoadParameters(const Manifest& manifest, const std::string& folder) {
  if (manifest.parameters_file.empty()) return {};
  const std::string path = folder + "/" + manifest.parameters_file;
  auto file = std::make_shared<const Mapping>(path);
  if (static_cast<int64_t>(file->size()) != manifest.parameters_size) {
    throw Error(path + ": " + std::to_string(file->size()) +
                " bytes, but the library's parameters are " +
                std::to_string(manifest.parameters_size) + ": truncated, or another network's");
  }
  std::vector<Tensor> found;
  for (const Stored& one : manifest.parameters) {
    const size_t at = static_cast<size_t>(one.offset);
    found.push_back(
        Tensor::FromNDAlloc(Mapped{file, at}, ffi::Shape(one.shape), Type(one.dtype), kCpu));
    const size_t bytes = Bytes(found.back());
    if (at > file->size() || bytes > file->size() - at ||
        Hex(Sha256(file->data() + at, bytes)) != one.hash) {
      throw Error(path + ": damaged, or another network's: its contents do not match the library");
    }
  }
  return found;
}

// The cores that this process may use, hyper-threads counted once.
inline int Cores(const cpu_set_t& allowed) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::set<std::pair<std::string, std::string>> cores;
  std::string package;
  size_t cpu = 0;
  for (std::string line; std::getline(cpuinfo, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = line.substr(0, line.find_last_not_of(" \t", colon - 1) + 1);
    const std::string value = line.substr(std::min(colon + 2, line.size()));
    if (key == "processor") cpu = std::stoul(value);
    if (key == "physical id") package = value;
    if (key == "core id" && CPU_ISSET(cpu, &allowed)) cores.insert({package, value});
  }
  return cores.empty() ? CPU_COUNT(&allowed) : static_cast<int>(cores.size());
}

inline int Threads(int asked) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof(allowed), &allowed);
  const int most = CPU_COUNT(&allowed);
  if (asked < 0 || asked > most) {
    throw Error(std::to_string(asked) + " threads: this process may use 1 to " +
                std::to_string(most));
  }
  if (asked) return asked;
  const char* named = std::getenv("TVM_NUM_THREADS");
  const int wanted = named ? std::atoi(named) : 0;
  return std::min(wanted > 0 ? wanted : Cores(allowed), most);
}

// Gives the calling thread's pool of workers its size. TVM is told the CPUs by name: left to itself
// it counts hyper-threads as half a core and binds the caller to one CPU.
inline void SizePool(int threads) {
  thread_local int sized = 0;
  if (sized == threads) return;
  constexpr int kShareAllCpus = -3;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof(allowed), &allowed);
  ffi::Array<ffi::String> names;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) names.push_back(std::to_string(cpu));
  }
  ffi::Function::GetGlobalRequired("runtime.config_threadpool")(kShareAllCpus, threads, names);
  sized = threads;
}

}  // namespace nybble::detail

#endif  // NYBBLE_LOAD_H_
