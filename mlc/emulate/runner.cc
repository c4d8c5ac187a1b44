// Runs one artifact once, on the machine that it was compiled for (emulated or not).
//
//   runner FOLDER    reads job.txt, library.so, graph.json, weights.bin and input<K>.bin there,
//                    writes output<K>.bin: plain bytes in the order of the artifact's signature
//   runner --hwcap   prints AT_HWCAP and AT_HWCAP2
//
// job.txt: "<weights> <inputs> <outputs>", then a line "<storage> <offset> <bytes>" per weight.
// Errors go to stderr, exit status 1.

#include <sys/auxv.h>
#include <tvm/runtime/module.h>
#include <tvm/runtime/ndarray.h>
#include <tvm/runtime/packed_func.h>
#include <tvm/runtime/registry.h>

#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>

using namespace tvm::runtime;

static const DLDevice kDevice{kDLCPU, 0};

static std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

static void Write(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  if (!file.write(content.data(), content.size())) throw std::runtime_error("cannot write " + path);
}

static std::map<int64_t, NDArray> Weights(std::istream& job, size_t count, const std::string& data) {
  std::map<int64_t, NDArray> weights;
  for (size_t k = 0; k < count; ++k) {
    int64_t storage = 0;
    size_t offset = 0, bytes = 0;
    if (!(job >> storage >> offset >> bytes) || offset + bytes > data.size())
      throw std::runtime_error("job.txt does not fit weights.bin");
    NDArray array = NDArray::Empty({static_cast<int64_t>(bytes)}, DLDataType{kDLUInt, 8, 1}, kDevice);
    array.CopyFromBytes(data.data() + offset, bytes);
    weights[storage] = array;
  }
  return weights;
}

static void Run(const std::string& folder) {
  std::istringstream job(Read(folder + "/job.txt"));
  size_t weight_count = 0, inputs = 0, outputs = 0;
  job >> weight_count >> inputs >> outputs;
  auto weights = Weights(job, weight_count, Read(folder + "/weights.bin"));
  PackedFunc lookup([&weights](TVMArgs args, TVMRetValue* result) {
    auto found = weights.find(static_cast<int64_t>(args[1]));
    if (found != weights.end()) *result = found->second;
  });
  const PackedFunc* create = Registry::Get("tvm.graph_executor.create");
  if (create == nullptr) throw std::runtime_error("this runtime library has no graph executor");
  Module library = Module::LoadFromFile(folder + "/library.so", "so");
  Module executor = (*create)(Read(folder + "/graph.json"), library, lookup,
                              static_cast<int>(kDevice.device_type), kDevice.device_id);
  for (size_t k = 0; k < inputs; ++k) {
    NDArray array = executor.GetFunction("get_input")("input" + std::to_string(k));
    std::string data = Read(folder + "/input" + std::to_string(k) + ".bin");
    array.CopyFromBytes(data.data(), data.size());
  }
  executor.GetFunction("run")();
  for (size_t k = 0; k < outputs; ++k) {
    NDArray array = executor.GetFunction("get_output")(static_cast<int>(k));
    std::string data(GetDataSize(*array.operator->()), '\0');
    array.CopyToBytes(data.data(), data.size());
    Write(folder + "/output" + std::to_string(k) + ".bin", data);
  }
}

int main(int argc, char** argv) {
  try {
    if (argc != 2) throw std::runtime_error("usage: runner FOLDER | --hwcap");
    if (std::string(argv[1]) == "--hwcap") {
      std::cout << getauxval(AT_HWCAP) << " " << getauxval(AT_HWCAP2) << std::endl;
    } else {
      Run(argv[1]);
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
