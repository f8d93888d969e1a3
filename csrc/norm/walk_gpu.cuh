// How a tensor is walked over on CUDA: the contract between runner_gpu.cu and the loops of
// norm/sweep_gpu.cuh.
#pragma once

#include "core/gpu.hpp"
#include "norm/coefficients.hpp"
#include "norm/cut.hpp"
#include "norm/sweep.hpp"

SP_BEGIN

namespace normalization {

constexpr int lanes = 4, warp = 32, threads = 256;
constexpr unsigned whole_warp = 0xffffffffu;

// Runs that are channels. A channel's runs in a group are cut into stretches, which are numbered
// through, and those into pieces.
struct Planes {
    Shape shape;
    index groups, bits;  // bytes of a run's gate
    int width;           // threads of a stretch, a power of two
    index stretches;     // of a run
    index each, pieces;  // stretches of a piece, pieces of a group

    SP_HD index stretch() const { return index(width) * lanes; }
    SP_HD index items() const { return pieces * groups * shape.channels; }
    // Elements before a stretch.
    SP_HD index before(index q) const {
        const index into = q % stretches * stretch();
        return q / stretches * shape.inner + (into < shape.inner ? into : shape.inner);
    }
};

// Runs that are rows, as norm/cut.hpp puts them together. A slab takes some of them, a tile some of
// their channels; past the slabs of a group are the rows left over.
struct Tiles {
    Shape shape;
    index groups, wide, width, group_bits;
    int across;         // threads across a row, a power of two
    index tiles;        // of a row; one where rows are put together
    index each, slabs;  // rows of a slab, slabs of a group with those left over

    SP_HD index items() const { return slabs * groups * tiles; }
};

struct Walk {
    bool rows;
    Planes planes;
    Tiles tiles;
    bool vectors;   // four elements lie on an address of theirs
    bool backward;  // what was touched last is still in cache
    index items() const { return rows ? tiles.items() : planes.items(); }
    index slabs() const { return rows ? tiles.slabs : planes.pieces; }
};

// One pass. Coefficients are (number, groups, channels) of the type that is computed in; sums go to
// (slabs, groups, number, channels), moments as count, mean and sum of squares about it.
struct Launch {
    Stream stream;
    Sweep sweep;
    Walk walk;
    const void* table;
    double* partial;
};
constexpr int partials_of(Function function, Activation a) {
    return function == Function::moments ? 3 : sums_of(function, a);
}

void sum_forward(const Launch& launch);
void map_forward(const Launch& launch);
void sum_backward(const Launch& launch);
void map_backward(const Launch& launch);
void sum_second(const Launch& launch);
void map_second(const Launch& launch);
// The sums and `map` in one launch, a block a channel, whose arrays take so many bytes each.
void hold_forward(const Launch& sums, const Sweep& map, const Task& task, index bytes);
void hold_backward(const Launch& sums, const Sweep& map, const Task& task, index bytes);

constexpr int hold_threads = 512;
// Sums in float move on to double after so many additions.
constexpr int additions = 32;

template <class... P, class... A>
void launch(const Stream& stream, void (*kernel)(P...), unsigned blocks, int width,
            std::size_t shared, A... arguments) {
    kernel<<<blocks, width, shared, native(stream).stream>>>(arguments...);
    check(cudaGetLastError(), "batch normalization");
}

// Not inlined: the algebra of a channel is long, and done once.
static __device__ __noinline__ void channel_coefficients(const Task& t, Function function, index g,
                                                         index c, double* out) {
    coefficients(t, function, g, c, out);
}
static __device__ __noinline__ void set_channel_statistics(const Task& t, index g, index c,
                                                           double mean, double square) {
    set_statistics(t, g, c, mean, square);
}
static __device__ __noinline__ void finish_channel(const Task& t, Function function, index c) {
    finish(t, function, c);
}

}  // namespace normalization

SP_END
