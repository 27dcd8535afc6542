// A made-up libcuda for tests/package/test_relaunch.py: graphs are built node by node, and every launch is a
// line of a log. Only what csrc/runtime/cuda_driver.h asks for.
#include <cuda.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#undef cuGraphGetEdges
#undef cuGraphKernelNodeGetParams
#undef cuMemcpy3DAsync

namespace {

struct Node {
    CUgraphNodeType type;
    std::string name;
    CUDA_KERNEL_NODE_PARAMS kernel = {};
    std::vector<CUlaunchAttribute> attributes;
    std::vector<int> arguments;
    std::vector<void*> pointers;
    CUDA_MEMSET_NODE_PARAMS memset = {};
    CUDA_MEMCPY3D memcpy = {};
};

struct Edge {
    size_t from, to;
    CUgraphEdgeData data;
};

struct Graph {
    std::vector<std::unique_ptr<Node>> nodes;
    std::vector<Edge> edges;
};

std::string log_text;
std::string failing;  // the call that fails with CUDA_ERROR_LAUNCH_FAILED

void say(const std::string& line) {
    log_text += line + "\n";
}

std::string number(uint64_t value) {
    return std::to_string(value);
}

CUresult done(const char* call) {
    return failing == call ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}

Graph* graph_of(void* graph) {
    return static_cast<Graph*>(graph);
}

Node* append(void* graph, CUgraphNodeType type, const char* name) {
    graph_of(graph)->nodes.push_back(std::make_unique<Node>());
    Node* node = graph_of(graph)->nodes.back().get();
    node->type = type;
    node->name = name;
    return node;
}

}  // namespace

extern "C" {

// --- what a test builds
// -------------------------------------------------------------------------------------------

void* fake_graph() {
    return new Graph;
}
void fake_graph_delete(void* graph) {
    delete graph_of(graph);
}
void fake_fail(const char* call) {
    failing = call;
}
const char* fake_log() {
    return log_text.c_str();
}
void fake_log_clear() {
    log_text.clear();
}

// as_library: a kernel of a library, which has no CUfunction.
void* fake_kernel(void* graph, const char* name, unsigned grid, unsigned block, unsigned shared, int argument,
                  int as_library) {
    Node* node = append(graph, CU_GRAPH_NODE_TYPE_KERNEL, name);
    node->kernel.gridDimX = grid, node->kernel.gridDimY = 2, node->kernel.gridDimZ = 3;
    node->kernel.blockDimX = block, node->kernel.blockDimY = node->kernel.blockDimZ = 1;
    node->kernel.sharedMemBytes = shared;
    node->arguments.push_back(argument);
    node->pointers.push_back(node->arguments.data());
    node->kernel.kernelParams = node->pointers.data();
    if (as_library) {
        node->kernel.kern = reinterpret_cast<CUkernel>(node);
    } else {
        node->kernel.func = reinterpret_cast<CUfunction>(node);
    }
    return node;
}

// As the first words of the attribute's value.
void fake_attribute(void* node, int id, unsigned first, unsigned second, unsigned third, unsigned fourth) {
    CUlaunchAttribute attribute = {};
    attribute.id = static_cast<CUlaunchAttributeID>(id);
    const unsigned values[4] = {first, second, third, fourth};
    std::memcpy(&attribute.value, values, sizeof values);
    static_cast<Node*>(node)->attributes.push_back(attribute);
}

void* fake_memset(void* graph, unsigned element, unsigned value, size_t width, size_t height, size_t pitch) {
    Node* node = append(graph, CU_GRAPH_NODE_TYPE_MEMSET, "memset");
    node->memset = {0x1000, pitch, value, element, width, height};
    return node;
}

void* fake_memcpy(void* graph, int source, int destination, size_t width, size_t height, size_t depth,
                  size_t offset) {
    Node* node = append(graph, CU_GRAPH_NODE_TYPE_MEMCPY, "memcpy");
    CUDA_MEMCPY3D& copy = node->memcpy;
    copy.srcMemoryType = static_cast<CUmemorytype>(source),
    copy.dstMemoryType = static_cast<CUmemorytype>(destination);
    copy.srcHost = reinterpret_cast<void*>(0x2000), copy.dstHost = reinterpret_cast<void*>(0x3000);
    copy.srcDevice = 0x4000, copy.dstDevice = 0x5000;
    copy.srcXInBytes = offset;
    copy.WidthInBytes = width, copy.Height = height, copy.Depth = depth;
    return node;
}

void* fake_other(void* graph, int type) {
    return append(graph, static_cast<CUgraphNodeType>(type), "other");
}

void fake_edge(void* graph, size_t from, size_t to, int port) {
    CUgraphEdgeData data = {};
    data.from_port = static_cast<unsigned char>(port);
    data.type = port == 0 ? CU_GRAPH_DEPENDENCY_TYPE_DEFAULT : CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC;
    graph_of(graph)->edges.push_back({from, to, data});
}

// --- the driver
// ---------------------------------------------------------------------------------------------------

CUresult cuGetErrorName(CUresult, const char** text) {
    *text = "CUDA_ERROR_LAUNCH_FAILED";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult, const char** text) {
    *text = "unspecified launch failure";
    return CUDA_SUCCESS;
}

CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode* nodes, size_t* count) {
    const auto& all = graph_of(graph)->nodes;
    if (nodes == nullptr) {
        *count = all.size();
    } else {
        for (size_t i = 0; i < *count; ++i) nodes[i] = reinterpret_cast<CUgraphNode>(all[i].get());
    }
    return done("cuGraphGetNodes");
}

CUresult cuGraphGetEdges_v2(CUgraph graph, CUgraphNode* from, CUgraphNode* to, CUgraphEdgeData* data,
                            size_t* count) {
    const auto& nodes = graph_of(graph)->nodes;
    const auto& edges = graph_of(graph)->edges;
    if (from == nullptr) {
        *count = edges.size();
        return CUDA_SUCCESS;
    }
    for (size_t i = 0; i < *count; ++i) {
        from[i] = reinterpret_cast<CUgraphNode>(nodes[edges[i].from].get());
        to[i] = reinterpret_cast<CUgraphNode>(nodes[edges[i].to].get());
        data[i] = edges[i].data;
    }
    return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType* type) {
    *type = reinterpret_cast<Node*>(node)->type;
    return CUDA_SUCCESS;
}

CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS* params) {
    *params = reinterpret_cast<Node*>(node)->kernel;
    return done("cuGraphKernelNodeGetParams");
}

CUresult cuGraphKernelNodeGetAttribute(CUgraphNode node, CUlaunchAttributeID id,
                                       CUlaunchAttributeValue* value) {
    for (const auto& attribute : reinterpret_cast<Node*>(node)->attributes) {
        if (attribute.id == id) *value = attribute.value;
    }
    return static_cast<int>(id) == 11 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;  // an older driver
}

CUresult cuGraphMemsetNodeGetParams(CUgraphNode node, CUDA_MEMSET_NODE_PARAMS* params) {
    *params = reinterpret_cast<Node*>(node)->memset;
    return CUDA_SUCCESS;
}

CUresult cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D* params) {
    *params = reinterpret_cast<Node*>(node)->memcpy;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetName(const char** name, CUfunction function) {
    *name = reinterpret_cast<Node*>(function)->name.c_str();
    return CUDA_SUCCESS;
}

CUresult cuKernelGetName(const char** name, CUkernel kernel) {
    *name = reinterpret_cast<Node*>(kernel)->name.c_str();
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params, void** extra) {
    std::string line = "launch " + reinterpret_cast<Node*>(function)->name + " grid " +
                       number(config->gridDimX) + "," + number(config->gridDimY) + "," +
                       number(config->gridDimZ) + " block " + number(config->blockDimX) + " shared " +
                       number(config->sharedMemBytes) + " argument " +
                       std::to_string(*static_cast<int*>(params[0])) + (extra == nullptr ? "" : " extra") +
                       " stream " + number(reinterpret_cast<uint64_t>(config->hStream));
    for (unsigned i = 0; i < config->numAttrs; ++i) {
        unsigned first = 0;
        std::memcpy(&first, &config->attrs[i].value, sizeof first);
        line += " attribute " + number(config->attrs[i].id) + "=" + number(first);
    }
    say(line);
    return done("cuLaunchKernelEx");
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t width, CUstream) {
    say("memset8 " + number(to) + " " + number(value) + " " + number(width));
    return CUDA_SUCCESS;
}

CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t width, CUstream) {
    say("memset16 " + number(to) + " " + number(value) + " " + number(width));
    return CUDA_SUCCESS;
}

CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t width, CUstream) {
    say("memset32 " + number(to) + " " + number(value) + " " + number(width));
    return CUDA_SUCCESS;
}

CUresult cuMemsetD2D8Async(CUdeviceptr, size_t pitch, unsigned char value, size_t width, size_t height,
                           CUstream) {
    say("memset8 " + number(value) + " " + number(width) + "x" + number(height) + " pitch " + number(pitch));
    return CUDA_SUCCESS;
}

CUresult cuMemsetD2D16Async(CUdeviceptr, size_t pitch, unsigned short value, size_t width, size_t height,
                            CUstream) {
    say("memset16 " + number(value) + " " + number(width) + "x" + number(height) + " pitch " + number(pitch));
    return CUDA_SUCCESS;
}

CUresult cuMemsetD2D32Async(CUdeviceptr, size_t pitch, unsigned value, size_t width, size_t height,
                            CUstream) {
    say("memset32 " + number(value) + " " + number(width) + "x" + number(height) + " pitch " + number(pitch));
    return CUDA_SUCCESS;
}

CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) {
    say("memcpy " + number(from) + " to " + number(to) + " " + number(bytes));
    return done("cuMemcpyAsync");
}

CUresult cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D* copy, CUstream) {
    say("memcpy3d " + number(copy->WidthInBytes) + "x" + number(copy->Height) + "x" + number(copy->Depth));
    return CUDA_SUCCESS;
}

// --- a graph step by step (bench/launch/driver_graph.py)
// ------------------------------------------------------------

CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    say("begin " + number(reinterpret_cast<uint64_t>(stream)) + " mode " + number(mode));
    return done("cuStreamBeginCapture_v2");
}

CUresult cuStreamEndCapture(CUstream, CUgraph* graph) {
    *graph = static_cast<CUgraph>(fake_graph());
    fake_kernel(*graph, "captured", 1, 32, 0, 1, 0);
    say("end");
    return done("cuStreamEndCapture");
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
    *exec = reinterpret_cast<CUgraphExec>(graph);
    say("instantiate flags " + number(flags));
    return done("cuGraphInstantiateWithFlags");
}

CUresult cuGraphUpload(CUgraphExec, CUstream) {
    say("upload");
    return done("cuGraphUpload");
}

CUresult cuGraphLaunch(CUgraphExec, CUstream stream) {
    say("replay " + number(reinterpret_cast<uint64_t>(stream)));
    return done("cuGraphLaunch");
}

CUresult cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo*) {
    say(reinterpret_cast<void*>(exec) == reinterpret_cast<void*>(graph) ? "update with itself" : "update");
    return done("cuGraphExecUpdate_v2");
}

CUresult cuStreamSynchronize(CUstream) {
    say("wait");
    return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec) {
    say("destroy exec");
    return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
    say("destroy graph");
    fake_graph_delete(graph);
    return CUDA_SUCCESS;
}

}  // extern "C"
