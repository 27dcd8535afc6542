#include "runtime/empty_launch.h"

#include <cstring>
#include <stdexcept>

#include "cuda/common/launch.h"
#include "cuda/empty.h"
#include "runtime/cuda_driver.h"

namespace pykernels {
namespace {

constexpr int max_arguments = 32;
constexpr unsigned threads = 32;

enum class Call { runtime, runtime_ex, driver_ex };

Call call_of(const std::string& name) {
    if (name == "cudaLaunchKernel") return Call::runtime;
    if (name == "cudaLaunchKernelEx") return Call::runtime_ex;
    if (name == "cuLaunchKernelEx") return Call::driver_ex;
    throw std::invalid_argument(
        "call must be cudaLaunchKernel, cudaLaunchKernelEx or cuLaunchKernelEx, got " + name);
}

}  // namespace

struct EmptyLaunch::Plan {
    Call call;
    const void* kernel;
    CUfunction function;
    const CudaDriver* driver;
    cudaLaunchConfig_t runtime_config = {};
    CUlaunchConfig driver_config = {};
    // Both attribute types are one: the runtime's names are macros of the driver's.
    cudaLaunchAttribute runtime_attributes[2] = {};
    CUlaunchAttribute driver_attributes[2] = {};
    void* values[max_arguments] = {};
    void* pointers[max_arguments] = {};
};

EmptyLaunch::EmptyLaunch(const std::string& call, int arguments, bool programmatic, int cluster_blocks,
                         int device)
    : device_(device), plan_(new Plan) {
    Plan& plan = *plan_;
    plan.call = call_of(call);
    plan.kernel = cuda::empty_kernel(arguments);
    if (plan.call == Call::runtime && (programmatic || cluster_blocks != 1)) {
        throw std::invalid_argument("cudaLaunchKernel takes neither PDL launches nor clusters");
    }
    if (cluster_blocks < 1 || cluster_blocks > cuda::default_cluster_blocks) {
        throw std::invalid_argument("cluster_blocks must be in 1..8, got " + std::to_string(cluster_blocks));
    }
    for (int i = 0; i < max_arguments; ++i) plan.pointers[i] = &plan.values[i];
    const cuda::DeviceScope scope(device_);
    cudaFunction_t function = nullptr;
    PYKERNELS_CHECK_CUDA(cudaGetFuncBySymbol(&function, plan.kernel));
    plan.function = function;
    plan.driver = plan.call == Call::driver_ex ? &cuda_driver() : nullptr;
    plan.runtime_config.gridDim = dim3(static_cast<unsigned>(cluster_blocks));
    plan.runtime_config.blockDim = dim3(threads);
    plan.runtime_config.attrs = plan.runtime_attributes;
    plan.driver_config.gridDimX = static_cast<unsigned>(cluster_blocks);
    plan.driver_config.gridDimY = plan.driver_config.gridDimZ = 1;
    plan.driver_config.blockDimX = threads;
    plan.driver_config.blockDimY = plan.driver_config.blockDimZ = 1;
    plan.driver_config.attrs = plan.driver_attributes;
    if (programmatic) {
        const unsigned i = plan.runtime_config.numAttrs++;
        plan.runtime_attributes[i].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        plan.runtime_attributes[i].val.programmaticStreamSerializationAllowed = 1;
        plan.driver_attributes[i].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        plan.driver_attributes[i].value.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster_blocks > 1) {
        const unsigned i = plan.runtime_config.numAttrs++;
        const auto blocks = static_cast<unsigned>(cluster_blocks);
        plan.runtime_attributes[i].id = cudaLaunchAttributeClusterDimension;
        plan.runtime_attributes[i].val.clusterDim.x = blocks;
        plan.runtime_attributes[i].val.clusterDim.y = plan.runtime_attributes[i].val.clusterDim.z = 1;
        plan.driver_attributes[i].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        plan.driver_attributes[i].value.clusterDim.x = blocks;
        plan.driver_attributes[i].value.clusterDim.y = plan.driver_attributes[i].value.clusterDim.z = 1;
    }
    plan.driver_config.numAttrs = plan.runtime_config.numAttrs;
}

EmptyLaunch::~EmptyLaunch() = default;

void EmptyLaunch::run(void* stream) const {
    const Plan& plan = *plan_;
    void** pointers = const_cast<void**>(plan.pointers);
    if (plan.call == Call::runtime) {
        PYKERNELS_CHECK_CUDA(cudaLaunchKernel(plan.kernel, plan.runtime_config.gridDim,
                                              plan.runtime_config.blockDim, pointers, 0,
                                              static_cast<cudaStream_t>(stream)));
    } else if (plan.call == Call::runtime_ex) {
        cudaLaunchConfig_t config = plan.runtime_config;
        config.stream = static_cast<cudaStream_t>(stream);
        PYKERNELS_CHECK_CUDA(cudaLaunchKernelExC(&config, plan.kernel, pointers));
    } else {
        CUlaunchConfig config = plan.driver_config;
        config.hStream = static_cast<CUstream>(stream);
        plan.driver->check(plan.driver->launch(&config, plan.function, pointers, nullptr),
                           "cuLaunchKernelEx");
    }
}

uintptr_t EmptyLaunch::function() const {
    return reinterpret_cast<uintptr_t>(plan_->function);
}

}  // namespace pykernels
