// Reads JSON as Python's json module writes it, for nybble.h.
#ifndef NYBBLE_JSON_H_
#define NYBBLE_JSON_H_

#include <cctype>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nybble {

// What goes wrong with a library, or with what it is given.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

// A value; asking it for what it is not is an Error.
class Json {
 public:
  static Json Parse(const std::string& text) {
    size_t at = 0;
    return Read(text, at, 0);
  }

  bool IsNull() const { return kind_ == 'n'; }
  bool IsString() const { return kind_ == '"'; }
  const std::string& Text() const { return Checked('"').text_; }
  int64_t Integer() const {
    if (Checked('0').text_.find_first_of(".eEN") != std::string::npos) Wrong();
    return std::stoll(text_);
  }
  double Number() const { return std::stod(Checked('0').text_); }
  const std::vector<Json>& Array() const { return Checked('[').items_; }
  bool Has(const std::string& key) const { return Checked('{').members_.count(key) != 0; }
  const Json& operator[](const std::string& key) const {
    auto found = Checked('{').members_.find(key);
    if (found == members_.end()) throw Error("the manifest has no '" + key + "'");
    return found->second;
  }

 private:
  [[noreturn]] static void Wrong() { throw Error("the manifest is not as Nybble writes it"); }

  const Json& Checked(char kind) const {
    if (kind_ != kind) Wrong();
    return *this;
  }

  static char Next(const std::string& text, size_t& at) {
    while (at < text.size() && std::strchr(" \n", text[at])) ++at;
    if (at >= text.size()) Wrong();
    return text[at];
  }

  static Json Read(const std::string& text, size_t& at, int depth) {
    constexpr int kDeepest = 64;
    if (depth > kDeepest) Wrong();
    Json value;
    const char first = Next(text, at);
    if (first == '"') {
      value.kind_ = '"';
      value.text_ = String(text, at);
    } else if (first == '{' || first == '[') {
      value.kind_ = first;
      ReadAll(value, text, at, depth);
    } else {
      const size_t start = at;
      while (at < text.size() && !std::strchr(",]} \n", text[at])) ++at;
      value.text_ = text.substr(start, at - start);
      const bool is_word = std::strchr("ntf", first) != nullptr;  // null, true, false
      if (!is_word && !std::strchr("-0123456789NI", first)) Wrong();
      value.kind_ = is_word ? first : '0';
    }
    return value;
  }

  static void ReadAll(Json& value, const std::string& text, size_t& at, int depth) {
    const char end = value.kind_ == '{' ? '}' : ']';
    ++at;
    if (Next(text, at) == end) {
      ++at;
      return;
    }
    for (char after = ','; after != end; ++at) {
      Next(text, at);
      if (value.kind_ == '{') {
        std::string key = String(text, at);
        if (Next(text, at) != ':') Wrong();
        ++at;
        value.members_[key] = Read(text, at, depth + 1);
      } else {
        value.items_.push_back(Read(text, at, depth + 1));
      }
      after = Next(text, at);
      if (after != ',' && after != end) Wrong();
    }
  }

  static std::string String(const std::string& text, size_t& at) {
    if (text[at] != '"') Wrong();
    std::string value;
    for (++at; at < text.size() && text[at] != '"'; ++at) {
      if (text[at] != '\\') {
        value += text[at];
        continue;
      }
      if (++at >= text.size()) Wrong();
      static const std::string kShort = "bfnrt", kMeant = "\b\f\n\r\t";
      const size_t which = kShort.find(text[at]);
      if (text[at] == 'u') {
        value += Escaped(text, at);
      } else {
        value += which == std::string::npos ? text[at] : kMeant[which];
      }
    }
    if (at >= text.size()) Wrong();
    ++at;
    return value;
  }

  // The UTF-8 of \uXXXX, of a pair of them beyond the first plane; at stands on the u.
  static std::string Escaped(const std::string& text, size_t& at) {
    auto unit = [&](size_t from) {
      if (from + 4 > text.size()) Wrong();
      return static_cast<uint32_t>(std::stoul(text.substr(from, 4), nullptr, 16));
    };
    uint32_t code = unit(at + 1);
    at += 4;
    if (code >> 10 == 0x36 && text.compare(at + 1, 2, "\\u") == 0) {
      code = 0x10000 + ((code & 0x3ff) << 10) + (unit(at + 3) & 0x3ff);
      at += 6;
    }
    if (code < 0x80) return {static_cast<char>(code)};
    int last = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;  // how many bytes follow the first
    constexpr uint32_t kFirst[] = {0, 0xc0, 0xe0, 0xf0};
    std::string bytes{static_cast<char>(kFirst[last] | code >> 6 * last)};
    while (last-- > 0) bytes += static_cast<char>(0x80 | (code >> 6 * last & 0x3f));
    return bytes;
  }

  char kind_ = 'n';
  std::string text_;
  std::vector<Json> items_;
  std::map<std::string, Json> members_;
};

}  // namespace detail
}  // namespace nybble

#endif  // NYBBLE_JSON_H_
