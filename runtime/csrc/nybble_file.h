// The file that Nybble writes, read and checked in C++; nybble/runtime/manifest.py describes it.
#ifndef NYBBLE_FILE_H_
#define NYBBLE_FILE_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "nybble_json.h"
#include "nybble_sha256.h"

namespace nybble {

// An extent: a number, or the name of one that each call may choose ("n").
struct Extent {
  int64_t size = -1;
  std::string name;
};

// An input or an output.
struct Port {
  std::string name;
  std::vector<Extent> shape;
  std::string dtype;            // as NumPy calls it
  std::optional<double> scale;  // of the quantization at this border, where it has one for all
  std::optional<int64_t> zero_point;
};

// One kernel call.
struct Layer {
  std::string name, op, kernel, activations;
  std::string weights;  // empty without weights
  int64_t size = 0;     // bytes of its constants
  int64_t macs = 0;     // multiply-adds for one image
};

// A constant in the file of parameters.
struct Stored {
  int64_t offset = 0;
  std::vector<int64_t> shape;
  std::string dtype, hash;
};

// What a library says about itself.
struct Manifest {
  std::string target, arch, hash;
  std::vector<std::string> features;  // of the CPU, that the code needs
  bool on_gpu = false;
  std::vector<Port> inputs, outputs;
  std::vector<Layer> layers;
  std::string parameters_file;  // beside the library; empty where the constants are inside
  int64_t parameters_size = 0;
  std::vector<Stored> parameters;
};

// One library of a file.
struct Variant {
  Manifest manifest;
  size_t offset = 0;
  size_t size = 0;
};

namespace detail {

// A file in memory, read-only.
class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status{};
    if (file < 0 || fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
      const std::string reason = file < 0 ? std::strerror(errno) : "it is no file";
      if (file >= 0) close(file);
      throw Error(path + ": cannot be read (" + reason + ")");
    }
    size_ = static_cast<size_t>(status.st_size);
    void* data = size_ ? mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0) : nullptr;
    close(file);
    if (data == MAP_FAILED) throw Error(path + ": cannot be mapped into memory");
    data_ = static_cast<const uint8_t*>(data);
  }
  ~Mapping() {
    if (size_) munmap(const_cast<uint8_t*>(data_), size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

inline std::vector<std::string> Texts(const Json& array) {
  std::vector<std::string> found;
  for (const Json& item : array.Array()) found.push_back(item.Text());
  return found;
}

inline Port ReadPort(const Json& json) {
  Port port{json["name"].Text(), {}, json["dtype"].Text(), {}, {}};
  for (const Json& extent : json["shape"].Array()) {
    if (extent.IsString()) {
      port.shape.push_back({-1, extent.Text()});
    } else {
      port.shape.push_back({extent.Integer(), ""});
    }
  }
  if (!json["scale"].IsNull()) port.scale = json["scale"].Number();
  if (!json["zero_point"].IsNull()) port.zero_point = json["zero_point"].Integer();
  return port;
}

inline Layer ReadLayer(const Json& json) {
  return {json["name"].Text(),
          json["op"].Text(),
          json["kernel"].Text(),
          json["activations"].Text(),
          json["weights"].IsNull() ? "" : json["weights"].Text(),
          json["size"].Integer(),
          json["macs"].Integer()};
}

inline void ReadParameters(const Json& json, Manifest& manifest) {
  manifest.parameters_file = json["file"].Text();
  manifest.parameters_size = json["size"].Integer();
  for (const Json& one : json["tensors"].Array()) {
    Stored stored{one["offset"].Integer(), {}, one["dtype"].Text(), one["hash"].Text()};
    for (const Json& extent : one["shape"].Array()) stored.shape.push_back(extent.Integer());
    manifest.parameters.push_back(stored);
  }
}

inline Manifest ReadManifest(const Json& json) {
  Manifest manifest;
  manifest.target = json["target"].Text();
  manifest.arch = json["arch"].Text();
  manifest.hash = json["hash"].Text();
  manifest.features = Texts(json["features"]);
  manifest.on_gpu = json.Has("device") && !json["device"].IsNull();
  for (const Json& port : json["inputs"].Array()) manifest.inputs.push_back(ReadPort(port));
  for (const Json& port : json["outputs"].Array()) manifest.outputs.push_back(ReadPort(port));
  for (const Json& layer : json["layers"].Array()) manifest.layers.push_back(ReadLayer(layer));
  if (json.Has("parameters") && !json["parameters"].IsNull()) {
    ReadParameters(json["parameters"], manifest);
  }
  return manifest;
}

inline std::vector<Variant> ReadIndex(const std::string& text, size_t end) {
  const Json json = Json::Parse(text);
  if (!json.Has("variants")) return {Variant{ReadManifest(json), 0, end}};
  const auto &places = json["variants"].Array(), &manifests = json["manifests"].Array();
  if (places.empty() || places.size() != manifests.size()) {
    throw Error("the index of variants does not fit its manifests");
  }
  std::vector<Variant> found;
  for (size_t i = 0; i < places.size(); ++i) {
    found.push_back({ReadManifest(manifests[i]), static_cast<size_t>(places[i]["offset"].Integer()),
                     static_cast<size_t>(places[i]["size"].Integer())});
    if (found[i].offset > end || found[i].size > end - found[i].offset) {
      throw Error("the index of variants does not fit the file");
    }
  }
  return found;
}

// The variants of a file, every byte of it checked.
inline std::vector<Variant> ReadFile(const Mapping& file, const std::string& path) {
  constexpr size_t kDigest = 32, kMagic = 8, kTrailer = 8 + kDigest + kMagic, kHeader = 64;
  const size_t size = file.size();
  const uint8_t* data = file.data();
  if (size < 4 || std::memcmp(data,
                              "\x7f"
                              "ELF",
                              4) != 0) {
    throw Error(path + ": not a shared library");
  }
  if (size < kHeader + kTrailer || std::memcmp(data + size - kMagic, "NYBBLE01", kMagic) != 0) {
    throw Error(path + ": truncated, or a shared library without Nybble's trailer");
  }
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8 | data[size - kTrailer + i];
  if (length > size - kTrailer - kHeader) throw Error(path + ": damaged: its length cannot be");
  const size_t covered = size - kDigest - kMagic, start = size - kTrailer - length;
  const Digest digest = Sha256(data, covered);
  if (std::memcmp(digest.data(), data + covered, kDigest) != 0) {
    throw Error(path + ": damaged: its contents do not match their checksum");
  }
  try {
    return ReadIndex(std::string(reinterpret_cast<const char*>(data) + start, length), start);
  } catch (const Error& error) {
    throw Error(path + ": " + error.what());
  }
}

// This CPU's features as Linux spells them.
inline std::set<std::string> CpuFeatures() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = line.substr(0, line.find_last_not_of(" \t", colon - 1) + 1);
    if (key != "flags" && key != "Features" && key != "isa") continue;
    std::string value = line.substr(colon + 1);
    if (key == "isa") std::replace(value.begin(), value.end(), '_', ' ');
    std::istringstream words(value);
    std::set<std::string> found{std::istream_iterator<std::string>(words), {}};
    for (const std::string& word : std::set<std::string>(found)) {
      if (word.compare(0, 4, "rv64") != 0) continue;  // rv64imafdcv_zicsr: letters, then words
      for (char letter : word.substr(4)) found.insert(std::string(1, letter));
      if (found.count("g")) found.insert({"i", "m", "a", "f", "d"});
    }
    return found;
  }
  return {};
}

inline std::string Lacking(const Manifest& manifest, const std::set<std::string>& have) {
  std::string lacking;
  for (const std::string& feature : manifest.features) {
    if (!have.count(feature)) lacking += " " + feature;
  }
  if (manifest.on_gpu) lacking += " a GPU, which only Nybble's Python runtime sets up";
  return lacking;
}

// The variant to run: the last that this CPU can run, or the one of that name.
inline const Variant& Choose(const std::vector<Variant>& variants, const std::string& name) {
  utsname machine{};
  uname(&machine);
  const std::string& arch = variants[0].manifest.arch;
  if (arch != machine.machine) {
    throw Error("compiled for " + arch + ", this machine is " + machine.machine);
  }
  const std::set<std::string> have = CpuFeatures();
  std::string reasons;
  for (size_t i = variants.size(); i-- > 0;) {
    const Manifest& manifest = variants[i].manifest;
    if (!name.empty() && manifest.target != name) continue;
    const std::string lacking = Lacking(manifest, have);
    if (lacking.empty()) return variants[i];
    reasons += "; the variant " + manifest.target + " needs" + lacking;
  }
  if (reasons.empty()) throw Error("the file holds no variant " + name);
  throw Error("this CPU can run none of the file" + reasons);
}

}  // namespace detail
}  // namespace nybble

#endif  // NYBBLE_FILE_H_
