// The few words of the CUDA runtime that launching code uses, for a device that is this process.
#include <cuda_runtime.h>

#include <cstring>

namespace {
int schedule = 0;
}

extern "C" {

void tokops_sim_seed_device(int seed) { schedule = seed; }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// The seed chooses the device's size too: results must not depend on how the work was split.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  constexpr int kProcessors[] = {4, 1, 132, 16, 3};
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = kProcessors[unsigned(schedule) % 5];
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 163 * 1024;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return cudaErrorNotSupported;
  }
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

cudaError_t cudaMemsetAsync(void* p, int byte, size_t n, cudaStream_t) {
  std::memset(p, byte, n);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, n);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaSuccess ? "no error" : "not supported by the simulator";
}

}  // extern "C"
