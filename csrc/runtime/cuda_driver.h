// The driver's calls that a relaunch makes, loaded at run time: nothing links libcuda, so that one library
// serves machines without a driver too.
#pragma once

#ifdef PYKERNELS_CUDA

#include <cuda.h>

#include <cstddef>
#include <string>

namespace pykernels {

// libcuda exports versioned symbols; cuda.h's names are macros for some of them and differ from one toolkit
// to the next. So both the symbols and the signatures (of CUDA 12.4 and later) stand here.
//   entry(member, symbol, arguments)
#define PYKERNELS_DRIVER_FUNCTIONS(entry)                                                                    \
    entry(get_error_name, "cuGetErrorName", (CUresult, const char**));                                       \
    entry(get_error_string, "cuGetErrorString", (CUresult, const char**));                                   \
    entry(graph_nodes, "cuGraphGetNodes", (CUgraph, CUgraphNode*, size_t*));                                 \
    entry(graph_edges, "cuGraphGetEdges_v2",                                                                 \
          (CUgraph, CUgraphNode*, CUgraphNode*, CUgraphEdgeData*, size_t*));                                 \
    entry(node_type, "cuGraphNodeGetType", (CUgraphNode, CUgraphNodeType*));                                 \
    entry(kernel_params, "cuGraphKernelNodeGetParams_v2", (CUgraphNode, CUDA_KERNEL_NODE_PARAMS*));          \
    entry(kernel_attribute, "cuGraphKernelNodeGetAttribute",                                                 \
          (CUgraphNode, CUlaunchAttributeID, CUlaunchAttributeValue*));                                      \
    entry(memset_params, "cuGraphMemsetNodeGetParams", (CUgraphNode, CUDA_MEMSET_NODE_PARAMS*));             \
    entry(memcpy_params, "cuGraphMemcpyNodeGetParams", (CUgraphNode, CUDA_MEMCPY3D*));                       \
    entry(function_name, "cuFuncGetName", (const char**, CUfunction));                                       \
    entry(kernel_name, "cuKernelGetName", (const char**, CUkernel));                                         \
    entry(launch, "cuLaunchKernelEx", (const CUlaunchConfig*, CUfunction, void**, void**));                  \
    entry(memset_8, "cuMemsetD8Async", (CUdeviceptr, unsigned char, size_t, CUstream));                      \
    entry(memset_16, "cuMemsetD16Async", (CUdeviceptr, unsigned short, size_t, CUstream));                   \
    entry(memset_32, "cuMemsetD32Async", (CUdeviceptr, unsigned int, size_t, CUstream));                     \
    entry(memset_2d_8, "cuMemsetD2D8Async", (CUdeviceptr, size_t, unsigned char, size_t, size_t, CUstream)); \
    entry(memset_2d_16, "cuMemsetD2D16Async",                                                                \
          (CUdeviceptr, size_t, unsigned short, size_t, size_t, CUstream));                                  \
    entry(memset_2d_32, "cuMemsetD2D32Async",                                                                \
          (CUdeviceptr, size_t, unsigned int, size_t, size_t, CUstream));                                    \
    entry(memcpy_1d, "cuMemcpyAsync", (CUdeviceptr, CUdeviceptr, size_t, CUstream));                         \
    entry(memcpy_3d, "cuMemcpy3DAsync_v2", (const CUDA_MEMCPY3D*, CUstream))

struct CudaDriver {
#define PYKERNELS_DRIVER_MEMBER(member, symbol, arguments) CUresult(*member) arguments = nullptr
    PYKERNELS_DRIVER_FUNCTIONS(PYKERNELS_DRIVER_MEMBER);
#undef PYKERNELS_DRIVER_MEMBER

    // Throws std::runtime_error with the call, the driver's word for the result and what it says of it.
    void check(CUresult status, const char* call) const;
};

// The driver's library by name or path, loaded once and never unloaded. Throws std::runtime_error with the
// loader's words, or the name of a call that it lacks.
const CudaDriver& cuda_driver(const std::string& library = "libcuda.so.1");

}  // namespace pykernels

#endif
