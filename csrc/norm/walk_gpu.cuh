// How a tensor is walked over on CUDA: the contract between runner_gpu.cu and the loops of
// norm/sweep_gpu.cuh.
#pragma once

#include "core/gpu.hpp"
#include "norm/coefficients.hpp"
#include "norm/cut.hpp"
#include "norm/sweep.hpp"

SP_BEGIN

namespace normalization {

constexpr int lanes = 4, warp = 32, threads = 512;
constexpr unsigned whole_warp = 0xffffffffu;

// Runs that are channels. A channel's runs in a group are cut into stretches, which are numbered
// through, and those into pieces.
struct Planes {
    Shape shape;
    index groups, bits;  // bytes of a run's gate
    int log_width;       // of the threads of a stretch
    int stretches;       // of a run
    int each;            // stretches of a piece
    index pieces;        // of a group
    // From a thread's stretch to its next one: runs and stretches, elements, and how many more
    // where that is past the end of a run.
    int runs_on, stretches_on;
    index ahead, jump;

    SP_HD int width() const { return 1 << log_width; }
    SP_HD int at_once() const { return threads >> log_width; }
    SP_HD index stretch() const { return index(lanes) << log_width; }
    // Elements of a piece.
    SP_HD index elements(index g, index slab) const {
        const index all = shape.outer_of(g) * stretches, begin = slab * each, end = begin + each;
        return before(end < all ? end : all) - before(begin < all ? begin : all);
    }

   private:
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
    int across, rest_across;  // threads across a row and across one left over, powers of two
    index tiles;              // of a row; one where rows are put together
    int each;                 // rows of a slab
    index slabs;              // of a group, with those left over
};

struct Walk {
    bool rows;
    Planes planes;
    Tiles tiles;
    bool vectors;   // four elements lie on an address of theirs
    bool backward;  // what was touched last is still in cache
    index slabs() const { return rows ? tiles.slabs : planes.pieces; }
    index groups() const { return rows ? tiles.groups : planes.groups; }
    // Of what is finished by itself: tiles, or channels.
    index parts() const { return rows ? tiles.tiles : planes.shape.channels; }
};

// One pass. Sums go to (groups, number, channels, slabs), moments as count, mean and sum of squares
// about it; `tickets` are zero, and left so.
struct Launch {
    Stream stream;
    Sweep sweep;
    Walk walk;
    double* partial;
    unsigned* tickets;
};
constexpr int partials_of(Function function, Activation a) {
    return function == Function::moments ? 3 : sums_of(function, a);
}

// Sums, and what becomes of them.
void sum_forward(const Launch& launch, const Task& task);
void sum_backward(const Launch& launch, const Task& task);
void sum_second(const Launch& launch, const Task& task);
void map_forward(const Launch& launch, const Task& task);
void map_backward(const Launch& launch, const Task& task);
void map_second(const Launch& launch, const Task& task);
// The sums and `map` in one launch, a block a channel, whose arrays take so many bytes each of the
// `most` that a block may have.
void hold_forward(const Launch& sums, const Sweep& map, const Task& task, index bytes, index most);
void hold_backward(const Launch& sums, const Sweep& map, const Task& task, index bytes, index most);

// Sums in float move on to double after so many additions.
constexpr int additions = 32;

template <class... P, class... A>
void launch(const Stream& stream, void (*kernel)(P...), dim3 blocks, std::size_t shared,
            const A&... arguments) {
    kernel<<<blocks, threads, shared, native(stream).stream>>>(arguments...);
    check(cudaGetLastError(), "batch normalization");
}

}  // namespace normalization

SP_END
