// Mode `native` of backends without launchers in this library: the nodes of a captured step, launched again
// one by one through the driver API. Nothing of the framework that made the step takes part.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace pykernels {

// One node of a captured step, for tables and tests.
struct RelaunchNode {
    std::string kind;  // kernel, memset, memcpy
    std::string name;  // a kernel's, demangled; of a memset or memcpy what it does, in words
    unsigned grid[3] = {0, 0, 0}, block[3] = {0, 0, 0};
    size_t shared_bytes = 0;              // dynamic, of a kernel
    size_t bytes = 0;                     // that a memset or memcpy writes
    std::vector<std::string> attributes;  // those that differ from the default, such as "cluster 2x1x1"
};

class Relaunch {
  public:
    // graph: a CUgraph of kernel, memset and memcpy nodes (empty nodes only order). The nodes own the
    // kernels' arguments: the graph must live, unchanged, as long as this object, and so must the memory that
    // they point to. Nodes are taken in an order that the graph's edges allow. Where some do not depend on
    // the one before them the step has parallel branches, which run one after another where `serialise` says
    // so. Kernels whose names contain one of `programmatic` get programmatic stream serialization (PDL)
    // whatever the graph says. library: the driver's, by name or path.
    //
    // Throws std::invalid_argument where the graph cannot be launched node by node, std::runtime_error where
    // the driver fails.
    Relaunch(void* graph, int device, bool serialise, const std::vector<std::string>& programmatic,
             const std::string& library);
    ~Relaunch();
    Relaunch(const Relaunch&) = delete;
    Relaunch& operator=(const Relaunch&) = delete;

    // Enqueues every node on `stream` (a CUstream of the device, whose context is current). Throws
    // std::runtime_error naming the node whose launch failed.
    void run(void* stream) const;

    int cuda_device() const { return device_; }
    size_t size() const { return nodes_.size(); }
    const std::vector<RelaunchNode>& nodes() const { return nodes_; }
    // How many nodes do not depend on the one before them; 0 where the step is a chain.
    size_t branches() const { return branches_; }

  private:
    struct Launches;
    int device_;
    size_t branches_ = 0;
    std::vector<RelaunchNode> nodes_;
    std::unique_ptr<Launches> launches_;
};

}  // namespace pykernels
