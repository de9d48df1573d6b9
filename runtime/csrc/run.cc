// Runs a network that Nybble compiled, with the TVM runtime alone: an example of nybble.h, and the
// program that `nybble bundle` puts beside a network.
//
//   run NET.so                             what the network takes and gives
//   run NET.so INPUT.npy… -o FOLDER        one input each, in order; writes FOLDER/OUTPUT.npy
//
//   --variant TARGET    of a file with several, the one to run (else NYBBLE_VARIANT, else the best)
//   --threads N         of the kernels (else TVM_NUM_THREADS, else one a core)
//   --repeat N          runs N times, and says how long the fastest took
#include <chrono>
#include <iostream>
#include <limits>

#include "npy.h"
#include "nybble.h"

namespace {

struct Arguments {
  std::string net, folder;
  std::vector<std::string> inputs;
  nybble::Options options;
  int repeat = 1;
};

int Count(const std::string& text) {
  if (text.empty() || text.size() > 9 ||
      text.find_first_not_of("0123456789") != std::string::npos || std::stoi(text) == 0) {
    throw nybble::Error(text + ": a positive number is expected here");
  }
  return std::stoi(text);
}

Arguments Read(int argc, char** argv) {
  Arguments found;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool is_option = word.size() > 1 && word[0] == '-';
    if (is_option && i + 1 == argc)
      throw nybble::Error(word + ": unknown, or its value is missing");
    if (word == "-o") {
      found.folder = argv[++i];
    } else if (word == "--variant") {
      found.options.variant = argv[++i];
    } else if (word == "--threads") {
      found.options.threads = Count(argv[++i]);
    } else if (word == "--repeat") {
      found.repeat = Count(argv[++i]);
    } else if (is_option) {
      throw nybble::Error(word + ": no such option");
    } else if (found.net.empty()) {
      found.net = word;
    } else {
      found.inputs.push_back(word);
    }
  }
  if (found.net.empty()) throw nybble::Error("usage: run NET.so [INPUT.npy… -o FOLDER]");
  if (found.inputs.empty() != found.folder.empty()) {
    throw nybble::Error("inputs and -o FOLDER go together: give both, or neither");
  }
  return found;
}

void Describe(const std::string& net) {
  for (const nybble::Manifest& manifest : nybble::Inspect(net)) {
    std::cout << "for " << manifest.target << ", " << manifest.layers.size() << " layers\n";
    for (const nybble::Port& port : manifest.inputs) {
      std::cout << "  takes " << port.name << ": " << port.dtype << " " << nybble::Show(port.shape)
                << "\n";
    }
    for (const nybble::Port& port : manifest.outputs) {
      std::cout << "  gives " << port.name << ": " << port.dtype << " " << nybble::Show(port.shape)
                << "\n";
    }
  }
}

void Run(const Arguments& arguments) {
  const nybble::Network network(arguments.net, arguments.options);
  std::vector<nybble::Tensor> inputs, outputs;
  for (const std::string& path : arguments.inputs) inputs.push_back(nybble::ReadNpy(path));
  double fastest = std::numeric_limits<double>::infinity();
  for (int i = 0; i < arguments.repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    outputs = network.Run(inputs);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    fastest = std::min(fastest, took.count());
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    std::string name = network.manifest().outputs[i].name;
    std::replace(name.begin(), name.end(), '/', '_');
    nybble::WriteNpy(arguments.folder + "/" + name + ".npy", outputs[i]);
    std::cout << name << ": " << nybble::Show(outputs[i]) << "\n";
  }
  std::cout << fastest << " ms, variant " << network.manifest().target << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = Read(argc, argv);
    arguments.inputs.empty() ? Describe(arguments.net) : Run(arguments);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
