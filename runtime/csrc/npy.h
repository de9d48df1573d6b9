// Arrays of .npy files (NumPy's format 1.0 and 2.0) as tensors.
#ifndef NYBBLE_NPY_H_
#define NYBBLE_NPY_H_

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "nybble_tensor.h"

namespace nybble {

namespace detail {

inline const std::vector<std::pair<std::string, std::string>>& NpyTypes() {
  static const std::vector<std::pair<std::string, std::string>> types = {
      {"<f2", "float16"}, {"<f4", "float32"}, {"<f8", "float64"}, {"|i1", "int8"},
      {"<i2", "int16"},   {"<i4", "int32"},   {"<i8", "int64"},   {"|u1", "uint8"},
      {"<u2", "uint16"},  {"<u4", "uint32"},  {"<u8", "uint64"},  {"|b1", "bool"}};
  return types;
}

// The text of a header's entry, up to the closing character.
inline std::string NpyEntry(const std::string& header, const std::string& key, char closing) {
  const size_t at = header.find("'" + key + "': ");
  const size_t start = at + key.size() + 4, end = header.find(closing, start);
  if (at == std::string::npos || end == std::string::npos) throw Error("no header of NumPy's");
  return header.substr(start, end - start);
}

inline Tensor NpyEmpty(const std::string& header) {
  const std::string written = NpyEntry(header, "descr", ',');
  if (NpyEntry(header, "fortran_order", ',') != "False") {
    throw Error("in Fortran's order; write numpy.ascontiguousarray(array)");
  }
  std::vector<int64_t> shape;
  std::istringstream extents(NpyEntry(header, "shape", ')').substr(1));
  for (std::string extent; std::getline(extents, extent, ',');) {
    if (extent.find_first_not_of(' ') != std::string::npos) shape.push_back(std::stoll(extent));
  }
  for (const auto& [code, name] : NpyTypes()) {
    if (written == "'" + code + "'") return Empty(name, shape);
  }
  throw Error("elements of type " + written + " are none that a network takes");
}

}  // namespace detail

inline Tensor ReadNpy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char start[8] = {};
  if (!file.read(start, sizeof(start)) || std::memcmp(start, "\x93NUMPY", 6) != 0 || start[6] > 2) {
    throw Error(path + ": not an .npy file (format 1.0 or 2.0), or not readable");
  }
  uint8_t sizes[4] = {};
  file.read(reinterpret_cast<char*>(sizes), start[6] == 1 ? 2 : 4);
  std::string header(sizes[0] | sizes[1] << 8 | sizes[2] << 16, ' ');
  file.read(header.data(), static_cast<std::streamsize>(header.size()));
  try {
    if (!file) throw Error("truncated");
    Tensor tensor = detail::NpyEmpty(header);
    const auto bytes = static_cast<std::streamsize>(detail::Bytes(tensor));
    if (!file.read(static_cast<char*>(tensor.data_ptr()), bytes) || file.peek() != EOF) {
      throw Error("truncated, or longer than its shape " + Show(tensor) + " says");
    }
    return tensor;
  } catch (const Error& error) {
    throw Error(path + ": " + error.what());
  }
}

inline void WriteNpy(const std::string& path, const Tensor& tensor) {
  const std::string dtype = ffi::DLDataTypeToString(tensor.dtype());
  std::string header = "{'descr': '";
  for (const auto& [code, name] : detail::NpyTypes()) header += name == dtype ? code : "";
  header += "', 'fortran_order': False, 'shape': (";
  for (int64_t extent : tensor.shape()) header += std::to_string(extent) + ", ";
  header += "), }";
  constexpr size_t kAlign = 64, kBefore = 10;  // the array starts on a multiple of kAlign
  header.append(kAlign - (kBefore + header.size() + 1) % kAlign, ' ');
  header += '\n';
  std::ofstream file(path, std::ios::binary);
  file << "\x93NUMPY" << '\1' << '\0' << static_cast<char>(header.size() & 255)
       << static_cast<char>(header.size() >> 8) << header;
  const auto bytes = static_cast<std::streamsize>(detail::Bytes(tensor));
  if (!file.write(static_cast<const char*>(tensor.data_ptr()), bytes).flush()) {
    throw Error(path + ": cannot be written");
  }
}

}  // namespace nybble

#endif  // NYBBLE_NPY_H_
