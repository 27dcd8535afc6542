// int4_out_mlp: h = x @ o^T + residual, out = swiglu(rmsnorm(h)) @ down^T + h, all weights of 4 bits: what
// follows attention in a layer, as one persistent kernel.
//
// Three mat-vecs as in int4_one_phase.cuh, in one launch of a block an SM. A warp's stream of weights does
// not end with a mat-vec: while the last sums of one are added up, handed over and brought to digits, pieces
// of the next are on their way, 100 KB an SM of them. Three launches would begin anew each time: launch,
// first instructions from memory, first bytes.
//
// The blocks hand h, and what gate and up give, to one another through words of the workspace, each an
// element and the number of the launch (mod 2^16) beside it: a thread that wants some of x reads until that
// number is there. A barrier over the grid would take one more way to the second-level cache and back, for an
// arrival, before the way on which x comes. Least bytes: the weights once. What limits it: memory, and the
// ways of x.
#include <stdexcept>
#include <string>

#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/stamps.cuh"
#include "cuda/int4_out_mlp_plan.h"
#include "cuda/int4_pieces.cuh"

namespace pykernels::cuda {
namespace {

// One of the mat-vecs. A unit is two rows, one a side: neighbours, or the same row of gate and of up.
template <class T>
struct Phase {
    struct Side {
        const uint8_t* packed;  // these three: of the first unit's row
        const T* scales;
        const uint8_t* zeros;  // null: 8 throughout
    } sides[2];
    int unit_rows;  // from a unit's row to the next unit's
    int width, n_groups;
    const T* norm_weight;  // null: x as it is
};

// Where the mat-vecs meet. words: [elements] of h, and of what gate and up give.
template <class T>
struct Params {
    Phase<T> phases[int4_out_mlp_phases];
    const T* x;
    const T* residual;
    uint32_t* h_words;
    uint32_t* activated_words;
    uint32_t* launches;  // the number of those that have ended
    T* out;
    float eps;
};

// A warp's copies, as Int4LineCopies (int4_one_phase.cuh) has them, through all phases.
template <class T>
struct Copies {
    static constexpr int rows_at_once = 4;  // 8 lanes a row
    const Params<T>& params;
    const Int4OutMlpPlan& plan;
    unsigned char* stages;
    int phase = -1, item = 0, last_item = 0, tile = 0, piece = 0, stage = 0;
    // From a side's first row. [half of the tile's units]: this lane's 16 bytes of the first piece, in bytes;
    // of lanes 0 to 15 the scales of their row, in elements.
    uint32_t from[2], scales = 0;

    __device__ __forceinline__ Copies(const Params<T>& params, const Int4OutMlpPlan& plan,
                                      unsigned char* stages)
        : params(params), plan(plan), stages(stages) {}

    __device__ __forceinline__ Int4Share share_of_warp() const {
        return {plan.phases[phase], static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x / warp_size)};
    }

    // Where nothing is left of a phase, to the next in which there is something.
    __device__ __forceinline__ void advance() {
        while (item == last_item && ++phase < int4_out_mlp_phases) {
            const Int4Share share = share_of_warp();
            item = share.first_item;
            last_item = share.last_item;
            tile = share.first_tile;
            piece = share.first_piece;
        }
    }

    __device__ __forceinline__ void begin_tile() {
        const Phase<T>& at = params.phases[phase];
        const Int4Share share = share_of_warp();
        // Where there is no unit, one that is there: nobody asks for its sum.
        const auto row = [&](int place) {
            const int unit = share.begin + min(tile * int4_tile_units + place, share.units - 1);
            return static_cast<uint32_t>(unit * at.unit_rows);
        };
        const int lane = int4_lane();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            from[half] =
                row(half * rows_at_once + lane / 8) * (static_cast<uint32_t>(at.width) / 2) + lane % 8 * 16;
        }
        scales = row(lane % int4_tile_units) * static_cast<uint32_t>(at.n_groups);
    }

    __device__ __forceinline__ void copy_next() {
        if (item == last_item || piece == 0) {
            // The first of a share begins anywhere in a tile.
            const int before = phase;
            advance();
            if (phase < int4_out_mlp_phases && (phase != before || piece == 0)) begin_tile();
        }
        if (phase < int4_out_mlp_phases) {
            const Int4OnePhasePlan& at = plan.phases[phase];
            const Phase<T>& of_phase = params.phases[phase];
            const int lane = int4_lane(), row = lane / 8;
            unsigned char* to = stages + stage * int4_one_phase_stage_bytes;
            unsigned char* line = to + row * int4_piece_bytes + (lane % 8 ^ row % 2 * 4) * 16;
#pragma unroll
            for (int side = 0; side < 2; ++side) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    async_copy16(line + (2 * side + half) * rows_at_once * int4_piece_bytes,
                                 of_phase.sides[side].packed +
                                     (from[half] + static_cast<uint32_t>(piece) * int4_piece_bytes));
                }
            }
            if (at.group_shift == 0 && lane < int4_tile_rows) {
                async_copy4(to + int4_tile_rows * int4_piece_bytes + lane * 4,
                            of_phase.sides[lane / int4_tile_units].scales +
                                (scales + 2 * static_cast<uint32_t>(piece)));
            }
            ++item;
            if (++piece == at.pieces) {
                piece = 0;
                ++tile;
            }
            if (++stage == int4_one_phase_stages) stage = 0;
        }
        async_commit();  // an empty group keeps the count right
    }
};

// Eight elements, in words. They are this launch's once all have its number, `flag`, in their upper halves.
struct Words {
    uint4 low, high;

    __device__ __forceinline__ void load_from(const uint32_t* words) {
        low = load_relaxed(reinterpret_cast<const uint4*>(words));
        high = load_relaxed(reinterpret_cast<const uint4*>(words) + 1);
    }
    __device__ __forceinline__ bool are_of(uint32_t flag) const {
        const uint32_t others = (low.x ^ flag) | (low.y ^ flag) | (low.z ^ flag) | (low.w ^ flag) |
                                (high.x ^ flag) | (high.y ^ flag) | (high.z ^ flag) | (high.w ^ flag);
        return others >> 16 == 0;
    }
    __device__ __forceinline__ uint4 elements() const {
        return make_uint4(low_halves(low.x, low.y), low_halves(low.z, low.w), low_halves(high.x, high.y),
                          low_halves(high.z, high.w));
    }
};

// Both elements of a pair of words, once they are of this launch.
__device__ __forceinline__ uint32_t receive_pair(const uint32_t* words, uint32_t flag) {
    uint2 pair;
    do {
        pair = load_relaxed(reinterpret_cast<const uint2*>(words));
    } while (((pair.x ^ flag) | (pair.y ^ flag)) >> 16 != 0);
    return low_halves(pair.x, pair.y);
}

template <class T>
__global__ void __launch_bounds__(int4_max_threads, 1)
    int4_out_mlp_kernel(const __grid_constant__ Params<T> params,
                        const __grid_constant__ Int4OutMlpPlan plan) {
    Stamps stamps;  // x_ready and streamed are those of down
    unsigned char* const shared = shared_memory();
    const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x),
              warp = static_cast<int>(threadIdx.x / warp_size), lane = int4_lane();
    constexpr int x_step = int4_max_threads * vector_elements;
    const int x_column = thread * vector_elements;
    const bool programmatic = plan.phases[0].programmatic;

    // A thread's vectors of x, x_step columns apart: as they are, or in words.
    Words x[int4_out_mlp_x_vectors];
    const auto load_x = [&] {
#pragma unroll
        for (int i = 0; i < int4_out_mlp_x_vectors; ++i) {
            const int column = x_column + i * x_step;
            if (column < params.phases[0].width)
                x[i].low = load(reinterpret_cast<const uint4*>(params.x + column));
        }
    };
    if (!programmatic) load_x();
    unsigned char* const stages = shared + warp * int4_one_phase_stages * int4_one_phase_stage_bytes;
    Copies<T> copies(params, plan, stages);
    const int ahead = plan.phases[0].stages_ahead_of_x;
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) copies.copy_next();
    stamps.mark(StampPoint::first_copies);
    wait_for_producers();
    stamps.mark(StampPoint::producers_done);
    launch_dependents();
    if (programmatic) load_x();
    const uint32_t number = load_relaxed(params.launches) + 1, flag = number << 16;
#pragma unroll 1
    for (int i = ahead; i < int4_one_phase_stages - 1; ++i) copies.copy_next();

    const Int4Places places(shared, plan.phases[0]);  // alike in all phases
    int stage = 0;
    // One code for all three: it comes from memory once, for the first.
#pragma unroll 1
    for (int phase = 0; phase < int4_out_mlp_phases; ++phase) {
        const Phase<T>& at = params.phases[phase];
        const Int4OnePhasePlan& of_phase = plan.phases[phase];
        const Int4Share share(of_phase, block, warp);
        const int width = at.width;
        const auto norm_at = [&](int column) {
            return at.norm_weight ? load(reinterpret_cast<const uint4*>(at.norm_weight + column)) : uint4{};
        };
        const uint4 first_norm = x_column < width ? norm_at(x_column) : uint4{};
        const uint32_t* const words = (phase == 1 ? params.h_words : params.activated_words) + x_column;
        if (phase > 0 && x_column < width) {
            // The first is waited for; the others are then asked for together, there or nearly so.
            do {
                x[0].load_from(words);
            } while (!x[0].are_of(flag));
#pragma unroll
            for (int i = 1; i < int4_out_mlp_x_vectors; ++i) {
                if (x_column + i * x_step < width) x[i].load_from(words + i * x_step);
            }
        }
        float sum = 0;
#pragma unroll
        for (int i = 0; i < int4_out_mlp_x_vectors; ++i) {
            const int column = x_column + i * x_step;
            if (column >= width) break;
            if (i > 0 && phase > 0) {
                while (!x[i].are_of(flag)) x[i].load_from(words + i * x_step);
            }
            Floats8 v = unpack8<T>(phase > 0 ? x[i].elements() : x[i].low);
            if (at.norm_weight) {
                sum = dot8(v, v, sum);
                const Floats8 w = unpack8<T>(i == 0 ? first_norm : norm_at(column));
#pragma unroll
                for (int j = 0; j < vector_elements; ++j) v[j] *= w[j];
            }
            int4_keep_x(v, static_cast<uint32_t>(column), 1, places.x, places.factors);
        }
        if (at.norm_weight) {
            sum = warp_sum(sum);
            if (lane == 0) store(places.squares + warp, sum);
        }
        // The residuals of a unit's rows, asked for ahead of its sums.
        const auto residual_of = [&](int unit) {
            if (phase == 0) return load(reinterpret_cast<const uint32_t*>(params.residual) + unit);
            return phase == 2 ? receive_pair(params.h_words + 2 * unit, flag) : 0u;
        };
        const int finish_lanes_log2 = of_phase.finish_lanes_log2;
        const int my_unit = thread >> finish_lanes_log2;
        uint32_t residual = my_unit < share.units ? residual_of(share.begin + my_unit) : 0u;
        block_barrier();  // x is there, and its squares
        stamps.mark(StampPoint::x_ready);

        int4_multiply_share<T, 1>(
            of_phase, share, 1, places, stages, stage, copies, [&](int tile, int place, int side) {
                const int unit = share.begin + min(tile * int4_tile_units + place, share.units - 1);
                const int64_t first = int64_t{unit * at.unit_rows} * at.n_groups;
                const auto& from = at.sides[side];
                return Int4GroupRows<T>{from.scales + first, from.zeros ? from.zeros + first : nullptr};
            });
        stamps.mark(StampPoint::streamed);
        const float scale =
            at.norm_weight ? int4_norm_scale(places.squares, int4_max_warps, width, params.eps) : 1.0f;

        block_barrier();  // all warps' sums are there
        const int finished_at_once = int4_max_threads >> finish_lanes_log2;
        // In whole warps, which add their lanes' parts up together.
#pragma unroll 1
        for (int first = warp * warp_size >> finish_lanes_log2; first < share.units;
             first += finished_at_once) {
            const int i = first + (lane >> finish_lanes_log2);
            const bool there = i < share.units;
            const int unit = there ? i : first;
            if (first >= finished_at_once) residual = residual_of(share.begin + unit);
            const float2 both = int4_unit_sums(of_phase, share, places.sums, unit, 0, 1);
            if (!there || (lane & ((1 << finish_lanes_log2) - 1)) != 0) continue;
            const float a = both.x * scale, b = both.y * scale;
            const int to = share.begin + unit;
            if (phase == 1) {
                store_relaxed(params.activated_words + to, from_float<T>(silu(a) * b).bits | flag);
                continue;
            }
            const float2 more = unpack(residual, T{});
            const uint32_t pair = pack<T>(a + more.x, b + more.y);
            if (phase == 0) {
                store_relaxed(reinterpret_cast<uint2*>(params.h_words + 2 * to),
                              make_uint2((pair & 0xffffu) | flag, pair >> 16 | flag));
            } else {
                store(reinterpret_cast<uint32_t*>(params.out) + to, pair);
            }
        }
    }
    // All blocks have read it: this one has had from each what gate and up give.
    if (block == 0 && thread == 0) store_relaxed(params.launches, number);
}

// Of the workspace: the launches' number, then the words of h and of what gate and up give.
constexpr int64_t launches_bytes = 64;

int64_t padded(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

int64_t words_bytes(int elements) {
    return padded(int64_t{elements} * 4);
}

Int4OutMlpPlan plan_here(const Int4OutMlpParams& p, bool programmatic) {
    Int4MatVecSizes sizes[int4_out_mlp_phases] = {
        {p.hidden / 2, p.in_features, p.batch, p.o.n_groups, 1, false, p.o.zeros != nullptr},
        {p.intermediate, p.hidden, p.batch, p.gate.n_groups, 1, true, p.gate.zeros || p.up.zeros},
        {p.hidden / 2, p.intermediate, p.batch, p.down.n_groups, 1, false, p.down.zeros != nullptr},
    };
    bool in_order = p.hidden % 2 == 0 && p.gate.n_groups == p.up.n_groups;
    for (const Int4WeightParams* weight : {&p.o, &p.gate, &p.up, &p.down})
        in_order &= weight->perm == nullptr && reinterpret_cast<uintptr_t>(weight->scales) % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(weight->zeros) % 2 == 0;
    for (const void* row : {p.x, p.norm_weight}) in_order &= reinterpret_cast<uintptr_t>(row) % 16 == 0;
    for (const void* row : {p.residual, static_cast<const void*>(p.out)})
        in_order &= reinterpret_cast<uintptr_t>(row) % 4 == 0;
    return plan_int4_out_mlp(sizes, in_order, programmatic,
                             {device_limits().sm_count, device_limits().shared_bytes});
}

template <class T>
typename Phase<T>::Side side_of(const Int4WeightParams& weight, int row, int width) {
    const int64_t groups = int64_t{row} * weight.n_groups;
    return {weight.packed + int64_t{row} * width / 2, static_cast<const T*>(weight.scales) + groups,
            weight.zeros ? weight.zeros + groups : nullptr};
}

template <class T>
void launch_persistent(const Int4OutMlpParams& p, const Int4OutMlpPlan& plan, const Stream& stream) {
    auto* const launches = static_cast<uint32_t*>(p.workspace);
    auto* const h_words = launches + launches_bytes / 4;
    const Params<T> params = {
        {{{side_of<T>(p.o, 0, p.in_features), side_of<T>(p.o, 1, p.in_features)},
          2,
          p.in_features,
          p.o.n_groups,
          nullptr},
         {{side_of<T>(p.gate, 0, p.hidden), side_of<T>(p.up, 0, p.hidden)},
          1,
          p.hidden,
          p.gate.n_groups,
          static_cast<const T*>(p.norm_weight)},
         {{side_of<T>(p.down, 0, p.intermediate), side_of<T>(p.down, 1, p.intermediate)},
          2,
          p.intermediate,
          p.down.n_groups,
          nullptr}},
        static_cast<const T*>(p.x),
        static_cast<const T*>(p.residual),
        h_words,
        h_words + words_bytes(p.hidden) / 4,
        launches,
        static_cast<T*>(p.out),
        p.eps};
    launch(int4_out_mlp_kernel<T>, plan.blocks, int4_max_threads, static_cast<size_t>(plan.shared_bytes),
           stream, params, plan);
}

}  // namespace

size_t int4_out_mlp_workspace_bytes(const Int4OutMlpParams& p) {
    return static_cast<size_t>(launches_bytes + words_bytes(p.hidden) + words_bytes(p.intermediate));
}

void int4_out_mlp(const Int4OutMlpParams& params, const Stream& stream) {
    const Int4OutMlpPlan plan = plan_here(params, stream.programmatic);
    if (!plan.fits) {
        throw std::invalid_argument(
            "pykernels::int4_out_mlp: on CUDA, x must be of batch 1, and weights of 256 to " +
            std::to_string(int4_out_mlp_max_width) +
            " columns, a multiple of 256, in groups of 128 columns, of a power of two times 128 or of a "
            "whole "
            "row, without perm; got batch " +
            std::to_string(params.batch) + ", " + std::to_string(params.in_features) + " -> " +
            std::to_string(params.hidden) + " -> " + std::to_string(params.intermediate) +
            (params.o.perm || params.gate.perm || params.up.perm || params.down.perm ? ", perm" : "") +
            ", groups of o, gate, up and down: " + std::to_string(params.o.n_groups) + ", " +
            std::to_string(params.gate.n_groups) + ", " + std::to_string(params.up.n_groups) + ", " +
            std::to_string(params.down.n_groups));
    }
    with_type("int4_out_mlp", params.dtype,
              [&](auto type) { launch_persistent<decltype(type)>(params, plan, stream); });
}

}  // namespace pykernels::cuda
