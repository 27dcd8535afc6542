#include "runtime/relaunch.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <queue>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "runtime/cuda_driver.h"
#include "runtime/demangled.h"
#include "runtime/nvtx.h"

namespace pykernels {
namespace {

// Attributes that a kernel node keeps and a launch takes. Later toolkits have names for more of them than
// CUDA 12.4, with which this has to compile.
constexpr auto preferred_cluster = static_cast<CUlaunchAttributeID>(11);
constexpr auto shared_memory_carveout = static_cast<CUlaunchAttributeID>(14);
constexpr size_t max_attributes = 9;

struct Launch {
    CUgraphNodeType type;
    CUDA_KERNEL_NODE_PARAMS kernel;
    CUlaunchConfig config;
    CUlaunchAttribute attributes[max_attributes];
    CUDA_MEMSET_NODE_PARAMS memset;
    CUDA_MEMCPY3D memcpy;
    bool one_row;  // a memset or memcpy of one dimension
};

// The order in which the nodes are launched, and what of it the graph's edges ask for.
struct Order {
    std::vector<CUgraphNode> nodes;
    std::vector<bool> depends, programmatic;  // on the node before, and by a programmatic edge alone
};

std::string words(const char* what, const unsigned (&sizes)[3]) {
    return std::string(what) + " " + std::to_string(sizes[0]) + "x" + std::to_string(sizes[1]) + "x" +
           std::to_string(sizes[2]);
}

const char* kind_of(CUgraphNodeType type) {
    switch (type) {
        case CU_GRAPH_NODE_TYPE_HOST:
            return "a host function";
        case CU_GRAPH_NODE_TYPE_GRAPH:
            return "a child graph";
        case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
            return "an external event";
        case CU_GRAPH_NODE_TYPE_EXT_SEMAS_SIGNAL:
        case CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT:
            return "an external semaphore";
        case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        case CU_GRAPH_NODE_TYPE_MEM_FREE:
            return "an allocation (cudaMallocAsync)";
        case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
            return "a batch of memory operations";
        default:
            return static_cast<int>(type) == 13 ? "a conditional node" : "a node of a kind unknown here";
    }
}

// Kahn's algorithm; of the nodes that may come next, the one that was created first. The edges decide: the
// driver promises no order of cuGraphGetNodes.
Order order_of(const CudaDriver& driver, CUgraph graph) {
    size_t n_nodes = 0, n_edges = 0;
    driver.check(driver.graph_nodes(graph, nullptr, &n_nodes), "cuGraphGetNodes");
    std::vector<CUgraphNode> nodes(n_nodes);
    if (n_nodes > 0) driver.check(driver.graph_nodes(graph, nodes.data(), &n_nodes), "cuGraphGetNodes");
    driver.check(driver.graph_edges(graph, nullptr, nullptr, nullptr, &n_edges), "cuGraphGetEdges");
    std::vector<CUgraphNode> from(n_edges), to(n_edges);
    std::vector<CUgraphEdgeData> data(n_edges);
    if (n_edges > 0) {
        driver.check(driver.graph_edges(graph, from.data(), to.data(), data.data(), &n_edges),
                     "cuGraphGetEdges");
    }

    std::unordered_map<CUgraphNode, size_t> index;
    for (size_t i = 0; i < n_nodes; ++i) index[nodes[i]] = i;
    std::vector<std::vector<std::pair<size_t, bool>>> followers(n_nodes);  // with: is the edge programmatic
    std::vector<size_t> waits_for(n_nodes, 0);
    for (size_t e = 0; e < n_edges; ++e) {
        // An edge from the port of launch order alone would let the kernel begin earlier than a programmatic
        // launch does: taken as a full dependency.
        const bool programmatic = data[e].type == CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC &&
                                  data[e].from_port == CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC;
        followers[index.at(from[e])].emplace_back(index.at(to[e]), programmatic);
        ++waits_for[index.at(to[e])];
    }
    const std::vector<size_t> producers = waits_for;
    std::priority_queue<size_t, std::vector<size_t>, std::greater<>> ready;
    for (size_t i = 0; i < n_nodes; ++i) {
        if (waits_for[i] == 0) ready.push(i);
    }
    Order order;
    size_t previous = n_nodes;
    while (!ready.empty()) {
        const size_t next = ready.top();
        ready.pop();
        bool depends = false, programmatic = false;
        if (previous != n_nodes) {
            for (const auto& [follower, edge_programmatic] : followers[previous]) {
                if (follower != next) continue;
                programmatic = edge_programmatic && (programmatic || !depends);
                depends = true;
            }
        }
        order.nodes.push_back(nodes[next]);
        order.depends.push_back(depends);
        // Where it also waits for another node in full, that one need not have ended when the one before
        // triggers.
        order.programmatic.push_back(programmatic && producers[next] == 1);
        for (const auto& [follower, _] : followers[next]) {
            if (--waits_for[follower] == 0) ready.push(follower);
        }
        previous = next;
    }
    if (order.nodes.size() != n_nodes) throw std::invalid_argument("the captured step's edges form a cycle");
    return order;
}

void append_attribute(Launch& launch, CUlaunchAttributeID id, const CUlaunchAttributeValue& value) {
    CUlaunchAttribute& attribute = launch.attributes[launch.config.numAttrs++];
    attribute.id = id;
    attribute.value = value;
}

void read_attributes(const CudaDriver& driver, CUgraphNode node, Launch& launch, RelaunchNode& said) {
    // A driver that does not know an attribute refuses to say it, and no kernel can have it then.
    const auto wanted = [&](CUlaunchAttributeID id, const auto& is_set, const auto& in_words) {
        CUlaunchAttributeValue value;
        std::memset(&value, 0, sizeof value);
        if (driver.kernel_attribute(node, id, &value) != CUDA_SUCCESS || !is_set(value)) return;
        append_attribute(launch, id, value);
        said.attributes.push_back(in_words(value));
    };
    const auto cluster = [](const CUlaunchAttributeValue& value, const char* what) {
        const unsigned sizes[3] = {value.clusterDim.x, value.clusterDim.y, value.clusterDim.z};
        return words(what, sizes);
    };
    const auto carveout = [](const CUlaunchAttributeValue& value) {
        int percent = 0;
        std::memcpy(&percent, &value, sizeof percent);
        return percent;
    };
    wanted(
        CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, [](const auto& v) { return v.clusterDim.x > 0; },
        [&](const auto& v) { return cluster(v, "cluster"); });
    wanted(
        preferred_cluster, [](const auto& v) { return v.clusterDim.x > 0; },
        [&](const auto& v) { return cluster(v, "preferred cluster"); });
    wanted(
        CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE,
        [](const auto& v) {
            return v.clusterSchedulingPolicyPreference != CU_CLUSTER_SCHEDULING_POLICY_DEFAULT;
        },
        [](const auto& v) {
            return v.clusterSchedulingPolicyPreference == CU_CLUSTER_SCHEDULING_POLICY_SPREAD
                       ? std::string("clusters spread")
                       : std::string("clusters load-balanced");
        });
    wanted(
        CU_LAUNCH_ATTRIBUTE_COOPERATIVE, [](const auto& v) { return v.cooperative != 0; },
        [](const auto&) { return std::string("cooperative"); });
    wanted(
        CU_LAUNCH_ATTRIBUTE_PRIORITY, [](const auto& v) { return v.priority != 0; },
        [](const auto& v) { return "priority " + std::to_string(v.priority); });
    wanted(
        CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW,
        [](const auto& v) { return v.accessPolicyWindow.num_bytes > 0; },
        [](const auto& v) {
            return "L2 window of " + std::to_string(v.accessPolicyWindow.num_bytes) + " bytes";
        });
    wanted(
        CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN,
        [](const auto& v) { return v.memSyncDomain != CU_LAUNCH_MEM_SYNC_DOMAIN_DEFAULT; },
        [](const auto&) { return std::string("remote memory sync domain"); });
    wanted(
        shared_memory_carveout, [&](const auto& v) { return carveout(v) > 0; },
        [&](const auto& v) { return "shared memory carveout " + std::to_string(carveout(v)) + "%"; });
}

void read_kernel(const CudaDriver& driver, CUgraphNode node, bool programmatic,
                 const std::vector<std::string>& forced, Launch& launch, RelaunchNode& said) {
    CUDA_KERNEL_NODE_PARAMS& params = launch.kernel;
    driver.check(driver.kernel_params(node, &params), "cuGraphKernelNodeGetParams");
    const char* name = nullptr;
    // A kernel of a library that was not loaded by a module has no CUfunction; a launch takes it in its
    // place.
    const CUresult named = params.func != nullptr ? driver.function_name(&name, params.func)
                                                  : driver.kernel_name(&name, params.kern);
    said.name = named == CUDA_SUCCESS && name != nullptr ? demangled(name) : "a kernel without a name";
    CUlaunchConfig& config = launch.config;
    config.gridDimX = params.gridDimX, config.gridDimY = params.gridDimY, config.gridDimZ = params.gridDimZ;
    config.blockDimX = params.blockDimX, config.blockDimY = params.blockDimY,
    config.blockDimZ = params.blockDimZ;
    config.sharedMemBytes = params.sharedMemBytes;
    said.grid[0] = params.gridDimX, said.grid[1] = params.gridDimY, said.grid[2] = params.gridDimZ;
    said.block[0] = params.blockDimX, said.block[1] = params.blockDimY, said.block[2] = params.blockDimZ;
    said.shared_bytes = params.sharedMemBytes;
    if (params.func == nullptr) params.func = reinterpret_cast<CUfunction>(params.kern);
    read_attributes(driver, node, launch, said);
    const auto asked = [&](const std::string& part) { return said.name.find(part) != std::string::npos; };
    if (programmatic || std::any_of(forced.begin(), forced.end(), asked)) {
        CUlaunchAttributeValue value;
        std::memset(&value, 0, sizeof value);
        value.programmaticStreamSerializationAllowed = 1;
        append_attribute(launch, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value);
        said.attributes.emplace_back("programmatic");
    }
}

const char* memory_of(CUmemorytype type) {
    switch (type) {
        case CU_MEMORYTYPE_HOST:
            return "host";
        case CU_MEMORYTYPE_ARRAY:
            return "array";
        default:
            return "device";
    }
}

void read_memset(const CudaDriver& driver, CUgraphNode node, Launch& launch, RelaunchNode& said) {
    CUDA_MEMSET_NODE_PARAMS& params = launch.memset;
    driver.check(driver.memset_params(node, &params), "cuGraphMemsetNodeGetParams");
    if (params.elementSize != 1 && params.elementSize != 2 && params.elementSize != 4) {
        throw std::invalid_argument("the captured step holds a memset of elements of " +
                                    std::to_string(params.elementSize) +
                                    " bytes: 1, 2 and 4 can be launched");
    }
    launch.one_row = params.height <= 1;
    said.bytes = params.elementSize * params.width * std::max<size_t>(params.height, 1);
    said.name = "memset of " + std::to_string(params.elementSize) + "-byte elements";
}

void read_memcpy(const CudaDriver& driver, CUgraphNode node, Launch& launch, RelaunchNode& said) {
    CUDA_MEMCPY3D& params = launch.memcpy;
    driver.check(driver.memcpy_params(node, &params), "cuGraphMemcpyNodeGetParams");
    launch.one_row = params.Height <= 1 && params.Depth <= 1 && params.srcMemoryType != CU_MEMORYTYPE_ARRAY &&
                     params.dstMemoryType != CU_MEMORYTYPE_ARRAY && params.srcY == 0 && params.srcZ == 0 &&
                     params.dstY == 0 && params.dstZ == 0;
    said.bytes = params.WidthInBytes * std::max<size_t>(params.Height, 1) * std::max<size_t>(params.Depth, 1);
    said.name =
        std::string("memcpy ") + memory_of(params.srcMemoryType) + " to " + memory_of(params.dstMemoryType);
}

CUresult run_memset(const CudaDriver& driver, const Launch& launch, CUstream stream) {
    const CUDA_MEMSET_NODE_PARAMS& p = launch.memset;
    const auto byte = static_cast<unsigned char>(p.value);
    const auto half = static_cast<unsigned short>(p.value);
    if (launch.one_row) {
        if (p.elementSize == 1) return driver.memset_8(p.dst, byte, p.width, stream);
        if (p.elementSize == 2) return driver.memset_16(p.dst, half, p.width, stream);
        return driver.memset_32(p.dst, p.value, p.width, stream);
    }
    if (p.elementSize == 1) return driver.memset_2d_8(p.dst, p.pitch, byte, p.width, p.height, stream);
    if (p.elementSize == 2) return driver.memset_2d_16(p.dst, p.pitch, half, p.width, p.height, stream);
    return driver.memset_2d_32(p.dst, p.pitch, p.value, p.width, p.height, stream);
}

CUresult run_memcpy(const CudaDriver& driver, const Launch& launch, CUstream stream) {
    const CUDA_MEMCPY3D& p = launch.memcpy;
    if (!launch.one_row) return driver.memcpy_3d(&p, stream);
    // With unified addressing one row is a one-dimensional copy, of host memory too. cuMemcpy3DAsync costs
    // the host more.
    const auto address = [](CUmemorytype type, const void* host, CUdeviceptr device, size_t x) {
        return (type == CU_MEMORYTYPE_HOST ? reinterpret_cast<CUdeviceptr>(host) : device) + x;
    };
    return driver.memcpy_1d(address(p.dstMemoryType, p.dstHost, p.dstDevice, p.dstXInBytes),
                            address(p.srcMemoryType, p.srcHost, p.srcDevice, p.srcXInBytes), p.WidthInBytes,
                            stream);
}

}  // namespace

struct Relaunch::Launches {
    const CudaDriver& driver;
    std::vector<Launch> list;
};

Relaunch::Relaunch(void* graph, int device, bool serialise, const std::vector<std::string>& programmatic,
                   const std::string& library)
    : device_(device), launches_(new Launches{cuda_driver(library), {}}) {
    const CudaDriver& driver = launches_->driver;
    const Order order = order_of(driver, static_cast<CUgraph>(graph));
    for (size_t i = 0; i < order.nodes.size(); ++i) {
        if (i > 0 && !order.depends[i]) ++branches_;
        const CUgraphNode node = order.nodes[i];
        Launch launch = {};
        driver.check(driver.node_type(node, &launch.type), "cuGraphNodeGetType");
        RelaunchNode said;
        switch (launch.type) {
            case CU_GRAPH_NODE_TYPE_KERNEL:
                said.kind = "kernel";
                read_kernel(driver, node, order.programmatic[i], programmatic, launch, said);
                break;
            case CU_GRAPH_NODE_TYPE_MEMSET:
                said.kind = "memset";
                read_memset(driver, node, launch, said);
                break;
            case CU_GRAPH_NODE_TYPE_MEMCPY:
                said.kind = "memcpy";
                read_memcpy(driver, node, launch, said);
                break;
            case CU_GRAPH_NODE_TYPE_EMPTY:
                continue;
            default:
                throw std::invalid_argument(std::string("the captured step holds ") + kind_of(launch.type) +
                                            ", which cannot be launched by itself");
        }
        launches_->list.push_back(launch);
        nodes_.push_back(std::move(said));
    }
    if (nodes_.empty()) throw std::invalid_argument("the captured step launches nothing");
    if (branches_ > 0 && !serialise) {
        throw std::invalid_argument(
            "the captured step has parallel branches (" + std::to_string(branches_) +
            " nodes do not wait for the one before them), and one stream would serialise them");
    }
    // The list no longer grows, so pointers into its elements stay valid.
    for (Launch& launch : launches_->list) launch.config.attrs = launch.attributes;
}

Relaunch::~Relaunch() = default;

void Relaunch::run(void* stream) const {
    const CudaDriver& driver = launches_->driver;
    const auto on = static_cast<CUstream>(stream);
    for (size_t i = 0; i < launches_->list.size(); ++i) {
        const Launch& launch = launches_->list[i];
        const nvtx::Range range(nodes_[i].name.c_str());
        CUresult status;
        if (launch.type == CU_GRAPH_NODE_TYPE_KERNEL) {
            CUlaunchConfig config = launch.config;
            config.hStream = on;
            status =
                driver.launch(&config, launch.kernel.func, launch.kernel.kernelParams, launch.kernel.extra);
        } else if (launch.type == CU_GRAPH_NODE_TYPE_MEMSET) {
            status = run_memset(driver, launch, on);
        } else {
            status = run_memcpy(driver, launch, on);
        }
        if (status != CUDA_SUCCESS) driver.check(status, ("launch of " + nodes_[i].name).c_str());
    }
}

}  // namespace pykernels
