// Opens the libraries that Nybble writes, in C++ and without Python; one header, no dependencies but
// tvm_ffi's headers. nybble/runtime/manifest.py describes the file.
//
//   tvm::ffi::Module library = nybble::Open("net.so");
//
// Every byte is checked against the file's SHA-256 before the dynamic linker sees it. Of a file with
// several variants the last one that this CPU can run is opened, or the one that the environment's
// NYBBLE_VARIANT names. All errors are std::runtime_error. Linux only.
#ifndef NYBBLE_H_
#define NYBBLE_H_

#include <sys/mman.h>
#include <sys/utsname.h>
#include <tvm/ffi/extra/module.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nybble {

// One library of a file.
struct Variant {
  std::string target;
  std::string arch;
  std::vector<std::string> features;
  bool on_gpu = false;
  size_t offset = 0;
  size_t size = 0;
};

namespace detail {

[[noreturn]] inline void Fail(const std::string& message) { throw std::runtime_error(message); }

// SHA-256 (FIPS 180-4) of a whole buffer.
inline std::array<uint8_t, 32> Sha256(const uint8_t* data, size_t size) {
  static const uint32_t kRound[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
      0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
      0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
      0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
      0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
      0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
      0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
      0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
      0xc67178f2};
  auto turn = [](uint32_t x, int by) { return x >> by | x << (32 - by); };
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                       0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::vector<uint8_t> tail(data + size / 64 * 64, data + size);
  tail.push_back(0x80);
  while (tail.size() % 64 != 56) tail.push_back(0);
  for (int i = 7; i >= 0; --i) tail.push_back(static_cast<uint8_t>(uint64_t{size} * 8 >> 8 * i));
  const size_t whole = size / 64, blocks = whole + tail.size() / 64;
  for (size_t b = 0; b < blocks; ++b) {
    const uint8_t* block = b < whole ? data + 64 * b : tail.data() + 64 * (b - whole);
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
      w[i] = uint32_t{block[4 * i]} << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 |
             block[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i) {
      uint32_t a = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3;
      uint32_t c = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + a + w[i - 7] + c;
    }
    uint32_t s[8];
    std::memcpy(s, state, sizeof(s));
    for (int i = 0; i < 64; ++i) {
      uint32_t up = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) +
                    ((s[4] & s[5]) ^ (~s[4] & s[6])) + kRound[i] + w[i];
      uint32_t down = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) +
                      ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      for (int k = 7; k > 0; --k) s[k] = s[k - 1];
      s[4] += up;
      s[0] = up + down;
    }
    for (int i = 0; i < 8; ++i) state[i] += s[i];
  }
  std::array<uint8_t, 32> digest;
  for (int i = 0; i < 32; ++i) digest[i] = static_cast<uint8_t>(state[i / 4] >> (24 - 8 * (i % 4)));
  return digest;
}

// Reads the JSON of a manifest or an index from left to right.
class Json {
 public:
  explicit Json(std::string text) : text_(std::move(text)) {}

  // Calls visit(key) for every member of the object here; visit must read the value.
  template <typename Visit>
  void Object(Visit visit) {
    Expect('{');
    for (bool more = !Take('}'); more; more = !Close('}')) {
      std::string key = String();
      Expect(':');
      visit(key);
    }
  }

  // Calls visit() for every element of the array here; visit must read the element.
  template <typename Visit>
  void Array(Visit visit) {
    Expect('[');
    for (bool more = !Take(']'); more; more = !Close(']')) visit();
  }

  std::string String() {
    Expect('"');
    std::string value;
    while (Peek(false) != '"') {
      if (text_[at_] == '\\') value += text_[at_++];  // kept as written: nothing here has escapes
      value += Peek(false);
      ++at_;
    }
    ++at_;
    return value;
  }

  size_t Number() {
    Peek();
    size_t end = at_;
    while (end < text_.size() && std::isdigit(static_cast<unsigned char>(text_[end]))) ++end;
    if (end == at_ || end - at_ > 18) Fail("the manifest holds no number where one belongs");
    size_t value = std::stoull(text_.substr(at_, end - at_));
    at_ = end;
    return value;
  }

  bool IsNull() { return Peek() == 'n'; }

  void Skip() {
    char next = Peek();
    if (next == '{') {
      Object([this](const std::string&) { Skip(); });
    } else if (next == '[') {
      Array([this] { Skip(); });
    } else if (next == '"') {
      String();
    } else {
      while (!std::strchr(",]} \n", Peek(false))) ++at_;
    }
  }

 private:
  char Peek(bool skip_blanks = true) {
    while (skip_blanks && at_ < text_.size() && std::strchr(" \n", text_[at_])) ++at_;
    if (at_ >= text_.size()) Fail("the manifest ends too early");
    return text_[at_];
  }
  bool Take(char c) {
    if (Peek() != c) return false;
    ++at_;
    return true;
  }
  void Expect(char c) {
    if (!Take(c)) Fail(std::string("the manifest lacks a ") + c);
  }
  bool Close(char c) {
    if (Take(c)) return true;
    Expect(',');
    return false;
  }

  std::string text_;
  size_t at_ = 0;
};

inline void ReadMember(Json& json, const std::string& key, Variant& variant) {
  if (key == "target") {
    variant.target = json.String();
  } else if (key == "arch") {
    variant.arch = json.String();
  } else if (key == "features") {
    json.Array([&] { variant.features.push_back(json.String()); });
  } else if (key == "offset") {
    variant.offset = json.Number();
  } else if (key == "size") {
    variant.size = json.Number();
  } else if (key == "device") {
    variant.on_gpu = !json.IsNull();
    json.Skip();
  } else {
    json.Skip();
  }
}

inline std::vector<Variant> ReadIndex(const std::string& text, size_t end) {
  Json json(text);
  Variant single;
  std::vector<Variant> several;
  std::string arch;
  json.Object([&](const std::string& key) {
    if (key == "variants") {
      json.Array([&] {
        several.emplace_back();
        json.Object([&](const std::string& k) { ReadMember(json, k, several.back()); });
      });
    } else if (key == "manifests") {
      json.Array([&] {
        Variant manifest;
        json.Object([&](const std::string& k) { ReadMember(json, k, manifest); });
        arch = manifest.arch;
      });
    } else {
      ReadMember(json, key, single);
    }
  });
  single.size = end;
  if (several.empty()) return {single};
  for (Variant& variant : several) {
    variant.arch = arch;
    if (variant.offset + variant.size > end) Fail("the index of variants does not fit the file");
  }
  return several;
}

inline std::string Lacking(const Variant& variant, const std::set<std::string>& have) {
  std::string lacking;
  for (const std::string& feature : variant.features) {
    if (!have.count(feature)) lacking += " " + feature;
  }
  if (variant.on_gpu) lacking += " a GPU, which only Nybble's Python runtime sets up";
  return lacking;
}

// A name under which the dynamic linker has opened nothing yet: it returns an open library of the
// same name without looking at the file.
inline std::string Fresh(const std::string& folder, const std::string& name) {
  static std::atomic<unsigned> loads{0};
  std::string detour;
  for (unsigned n = ++loads; n; n >>= 1) detour += n & 1 ? "./" : "/";
  return folder + "/" + detour + name;
}

inline tvm::ffi::Module LoadLibrary(const std::string& path) {
  auto load = tvm::ffi::Function::GetGlobalRequired("ffi.Module.load_from_file.so");
  return load(path, "so").cast<tvm::ffi::Module>();
}

// Copies a variant to a file in memory (or an unlinked temporary one) and opens that.
inline tvm::ffi::Module LoadPart(const char* data, const Variant& variant) {
  int file = memfd_create("nybble", MFD_CLOEXEC);
  if (file < 0) {
    const char* folder = std::getenv("TMPDIR");
    std::string name = std::string(folder && *folder ? folder : "/tmp") + "/nybbleXXXXXX";
    file = mkstemp(name.data());
    if (file < 0) Fail("cannot make " + name + " to open the variant " + variant.target);
    unlink(name.c_str());
  }
  for (size_t done = 0; done < variant.size;) {
    ssize_t wrote = write(file, data + variant.offset + done, variant.size - done);
    if (wrote <= 0) {
      close(file);
      Fail("cannot copy the variant " + variant.target + " to open it");
    }
    done += static_cast<size_t>(wrote);
  }
  struct Closing {
    int file;
    ~Closing() { close(file); }
  } closing{file};
  return LoadLibrary(Fresh("/proc/self/fd", std::to_string(file)));
}

}  // namespace detail

// The variants of a file whose bytes are given, after checking every one of them.
inline std::vector<Variant> Variants(const std::string& bytes, const std::string& path) {
  constexpr size_t kDigest = 32, kMagic = 8, kTrailer = 8 + kDigest + kMagic, kHeader = 64;
  const size_t size = bytes.size();
  if (bytes.compare(0, 4, "\x7f" "ELF") != 0) detail::Fail(path + ": not a shared library");
  if (size < kHeader + kTrailer || bytes.compare(size - kMagic, kMagic, "NYBBLE01") != 0) {
    detail::Fail(path + ": truncated, or a shared library without Nybble's trailer");
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) {
    length = length << 8 | static_cast<uint8_t>(bytes[size - kTrailer + static_cast<size_t>(i)]);
  }
  if (length > size - kTrailer - kHeader) detail::Fail(path + ": damaged: its length cannot be");
  const size_t covered = size - kDigest - kMagic, start = size - kTrailer - length;
  auto digest = detail::Sha256(reinterpret_cast<const uint8_t*>(bytes.data()), covered);
  if (std::memcmp(digest.data(), bytes.data() + covered, kDigest) != 0) {
    detail::Fail(path + ": damaged: its contents do not match their checksum");
  }
  return detail::ReadIndex(bytes.substr(start, length), start);
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

// The position of the variant to run: the last that fits, or the one that NYBBLE_VARIANT names.
inline size_t Choose(const std::vector<Variant>& variants, const std::set<std::string>& have) {
  utsname machine{};
  uname(&machine);
  if (variants[0].arch != machine.machine) {
    detail::Fail("compiled for " + variants[0].arch + ", this machine is " + machine.machine);
  }
  const char* named = std::getenv("NYBBLE_VARIANT");
  const bool forced = named && *named && variants.size() > 1;
  std::string reasons;
  for (size_t i = variants.size(); i-- > 0;) {
    if (forced && variants[i].target != named) continue;
    const std::string lacking = detail::Lacking(variants[i], have);
    if (lacking.empty()) return i;
    reasons += "; the variant " + variants[i].target + " needs" + lacking;
  }
  if (reasons.empty()) detail::Fail(std::string("the file holds no variant ") + named);
  detail::Fail("this CPU can run none of the file" + reasons);
}

// Opens a library, or the variant of it that fits this CPU best.
inline tvm::ffi::Module Open(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) detail::Fail(path + ": cannot be read");
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const std::vector<Variant> variants = Variants(bytes, path);
  const Variant& chosen = variants[Choose(variants, CpuFeatures())];
  if (chosen.offset != 0) return detail::LoadPart(bytes.data(), chosen);
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash);
  return detail::LoadLibrary(detail::Fresh(folder, path.substr(slash + 1)));
}

}  // namespace nybble

#endif  // NYBBLE_H_
