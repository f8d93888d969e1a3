// The loops of norm/sweep.hpp on CUDA. Every thread takes four neighbouring elements at once; the
// threads that follow each other take one stretch of a run. Where runs are channels, a block stays
// with one of them; where they are rows, a thread stays with its four channels.
#pragma once

#include <type_traits>

#include "norm/channel_gpu.cuh"

SP_BEGIN

namespace normalization {

// A smooth activation is long in double, and called.
template <class F>
__host__ __device__ __noinline__ double called(double x, const F& f) {
    return f(x);
}
template <class F>
SP_HD double per_lane(double x, const F& f) {
    return called(x, f);
}

__device__ __forceinline__ unsigned gate_bits(const Sweep& s, const Spot& spot, index bit) {
    return s.gate && spot.n > 0 ? unsigned(s.gate[bit / 8]) >> (bit % 8) : 0u;
}

// `ready`: called before coefficients are used, once what they are for is on its way.
template <class Form, class S, unsigned held, class F, int N, class C, class R>
__device__ __forceinline__ void map_spots(const F& f, const Sweep& s, const Spot (&spot)[N],
                                          const Lines& lines, const C& c, R&& ready) {
    using T = number<S>;
    Stored<S> raw[N][inputs];
    read<Form, S, held>(s, spot, lines, raw);
    ready();
#pragma unroll
    for (int b = 0; b < N; ++b) {
        Stored<S> out[F::outputs];
        const int n = Form::vectors ? lanes : spot[b].n;
        const unsigned gates = gate_bits(s, spot[b], lines.gate.of(spot[b]));
        unsigned new_gates = 0;
#pragma unroll
        for (int l = 0; l < lanes; ++l) {
            T gate = T(gates >> l & 1), in[inputs], one[F::outputs];
            decode<Form::reads>(raw[b], s.dtype, l, in);
            f(in, c.of(l), one, gate);
            new_gates |= l < n && gate > T(0) ? 1u << l : 0u;
#pragma unroll
            for (int j = 0; j < F::outputs; ++j) out[j].of[l] = encoded<S>(one[j], s.dtype);
        }
        if (Form::gates && s.new_gate) {
            const unsigned beside = __shfl_down_sync(whole_warp, new_gates, 1);
            if (lines.paired) new_gates |= beside << lanes;
            if (spot[b].n > 0 && (!lines.paired || threadIdx.x % 2 == 0)) {
                s.new_gate[lines.gate.of(spot[b]) / 8] = std::uint8_t(new_gates);
            }
        }
#pragma unroll
        for (int j = 0; j < F::outputs; ++j) {
            if (s.out[j] && spot[b].n > 0) {
                put<Form::vectors>(s.out[j], spot[b].at, spot[b].n, out[j]);
            }
        }
    }
}

// Adds the terms of each lane to `sum`.
template <class Form, class S, unsigned held, class F, int N, class C, class R>
__device__ __forceinline__ void sum_spots(const F& f, const Sweep& s, const Spot (&spot)[N],
                                          const Lines& lines, const C& c, R&& ready,
                                          number<S> (&sum)[F::sums][lanes]) {
    using T = number<S>;
    Stored<S> raw[N][inputs];
    read<Form, S, held>(s, spot, lines, raw);
    ready();
#pragma unroll
    for (int b = 0; b < N; ++b) {
        if (Form::vectors && spot[b].n == 0) continue;
        const int n = Form::vectors ? lanes : spot[b].n;
        const unsigned gates = gate_bits(s, spot[b], lines.gate.of(spot[b]));
#pragma unroll
        for (int l = 0; l < lanes; ++l) {
            T gate = T(gates >> l & 1), in[inputs], term[F::sums];
            decode<Form::reads>(raw[b], s.dtype, l, in);
            f(in, c.of(l), term, gate);
#pragma unroll
            for (int k = 0; k < F::sums; ++k) sum[k][l] += l < n ? term[k] : T(0);
        }
    }
}

// Adds the terms of some elements in double: for sums that left the range of float.
template <class F, class S>
__device__ __noinline__ void add_exactly(const F& f, const Sweep& s, index at, index bit,
                                         index stride, index bit_stride, index count,
                                         const number<S>* coefficients, double* sum) {
    double c[F::coefficients];
    for (int k = 0; k < F::coefficients; ++k) c[k] = double(coefficients[k]);
    for (int k = 0; k < F::sums; ++k) sum[k] = 0.0;
    for (index i = 0; i < count; ++i, at += stride, bit += bit_stride) {
        double in[inputs], term[F::sums];
        double gate = s.gate ? double(s.gate[bit / 8] >> (bit % 8) & 1) : 0.0;
        for (int j = 0; j < inputs; ++j) {
            in[j] = (F::reads >> j & 1) && s.in[j] ? double(element<S>(s.in[j], s.dtype, at)) : 0.0;
        }
        f(in, c, term, gate);
        for (int k = 0; k < F::sums; ++k) sum[k] += term[k];
    }
}
// Whether sums in float cannot be trusted: they overflowed, or squares vanished.
template <class F>
__device__ __forceinline__ bool untrusted(const double* sum, index n) {
    bool finite = true;
    for (int k = 0; k < F::sums; ++k) finite = finite && std::isfinite(sum[k]);
    if (std::is_same_v<F, Moments>) {
        return !finite || (sum[0] != 0.0 && sum[1] < 1e-30 * double(n));
    }
    return !finite;
}

// What moments are taken about: the mean of the first elements, which keeps the digits of squares
// whatever the mean is.
template <class S>
__device__ __forceinline__ double shift_of(const Sweep& s, index at, index stride, index n) {
    const int few = n < lanes ? 1 : lanes;
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < lanes; ++i) {
        if (i < few) sum += double(element<S>(s.in[X], s.dtype, at + i * stride));
    }
    return double(number<S>(few == 1 ? sum : sum / lanes));
}

// A slab's sums of a channel, to where it keeps them.
template <class F>
__device__ __forceinline__ void keep(const double* sum, index n, double shift, double* to,
                                     index apart) {
    if constexpr (std::is_same_v<F, Moments>) {
        const double offset = n ? sum[0] / double(n) : 0.0, square = sum[1] - sum[0] * offset;
        to[0] = double(n);
        to[apart] = shift + offset;
        to[2 * apart] = square < 0.0 ? 0.0 : square;  // a NaN stays
    } else {
        for (int k = 0; k < F::sums; ++k) to[k * apart] = sum[k];
    }
}
template <class F>
constexpr int partials = std::is_same_v<F, Moments> ? 3 : F::sums;

// Blocks that a multiprocessor is to hold: what reads much has to keep more in registers, and rows,
// whose coefficients are each lane's own, all that there are.
template <class F, class S>
constexpr int resident = sizeof(S) < 8 && F::coefficients <= 6 && arrays_of(F::reads) <= 3 ? 2 : 1;

// Calls f(part, slab) for those of a block, in the order of memory or the other way.
template <class F>
__device__ __forceinline__ void for_items(index parts, index slabs, bool backward, F&& f) {
    for (index v = blockIdx.y; v < slabs; v += gridDim.y) {
        for (index u = blockIdx.x; u < parts; u += gridDim.x) {
            f(backward ? parts - 1 - u : u, backward ? slabs - 1 - v : v);
        }
    }
}
// The blocks of a launch; past the most that a grid has they take several items each.
inline dim3 blocks_of(index parts, index slabs) {
    return {unsigned(std::min<index>(parts, 1 << 30)), unsigned(std::min<index>(slabs, 65535))};
}
// Slabs of all groups follow each other.
__device__ __forceinline__ index group_of(index slab, index groups) {
    return groups == 1 ? 0 : slab % groups;
}
__device__ __forceinline__ index slab_of_group(index slab, index groups) {
    return groups == 1 ? slab : slab / groups;
}

// A piece of a channel.
struct Piece {
    index g, slab;
    int stretches, begin;  // and the one of its first run that it begins with
    index first;           // element of that run
    Lines lines;
};

__device__ __forceinline__ Piece piece_of(const Planes& p, index c, index slab, bool vectors) {
    const Shape& s = p.shape;
    Piece piece{};
    piece.g = group_of(slab, p.groups);
    piece.slab = slab_of_group(slab, p.groups);
    const index all = s.outer_of(piece.g) * p.stretches, begin = piece.slab * p.each;
    piece.stretches = int(std::clamp<index>(all - begin, 0, p.each));
    const index run_of_group = begin / p.stretches;
    piece.begin = int(begin - run_of_group * p.stretches);
    const index run = (piece.g * s.group + run_of_group) * s.channels + c;
    piece.first = run * s.inner;
    const index stride = s.channels * s.inner, padded = (s.inner + lanes - 1) / lanes * lanes;
    piece.lines.vectors = vectors;
    piece.lines.paired = p.log_width > 0;
    piece.lines.gate = {8 * run * p.bits - piece.first, 8 * s.channels * p.bits - stride};
    piece.lines.held = {-piece.first, padded - stride};
    return piece;
}

// Calls f(spots) for the stretches of a piece, the same number of times in all threads.
template <int N, class F>
__device__ __forceinline__ void for_stretches(const Planes& p, const Piece& piece, F&& f) {
    const int mine = int(threadIdx.x) >> p.log_width;
    const int into = (int(threadIdx.x) & (p.width() - 1)) * lanes;
    const index left = p.shape.inner - (p.stretches - 1) * p.stretch() - into;
    const int last = left <= 0 ? 0 : left < lanes ? int(left) : lanes;  // of a run's last stretch
    int line = (piece.begin + mine) / p.stretches;
    int stretch = piece.begin + mine - line * p.stretches;
    index at = piece.first + line * p.shape.channels * p.shape.inner + stretch * p.stretch() + into;
    for (int base = 0; base < piece.stretches; base += N * p.at_once()) {
        Spot spot[N];
#pragma unroll
        for (int b = 0; b < N; ++b) {
            spot[b].at = at;
            spot[b].line = line;
            spot[b].n = base + b * p.at_once() + mine >= piece.stretches ? 0
                        : stretch == p.stretches - 1                     ? last
                                                                         : lanes;
            at += p.ahead;
            line += p.runs_on;
            stretch += p.stretches_on;
            if (stretch >= p.stretches) {
                stretch -= p.stretches;
                at += p.jump;
                ++line;
            }
        }
        f(spot);
    }
}

template <class F, class S, unsigned held, class R>
__device__ __forceinline__ void sum_piece(const F& f, const Sweep& s, const Planes& p,
                                          const Piece& piece,
                                          const Same<number<S>, F::coefficients>& c, R&& ready,
                                          double (&total)[F::sums]) {
    using T = number<S>;
    constexpr int m = F::sums;
    T sum[m][lanes] = {};
#pragma unroll
    for (int k = 0; k < m; ++k) total[k] = 0.0;
    int added = 0;
    index n = 0;
    const auto fold = [&] {
#pragma unroll
        for (int k = 0; k < m; ++k) {
            total[k] +=
                (double(sum[k][0]) + double(sum[k][1])) + (double(sum[k][2]) + double(sum[k][3]));
#pragma unroll
            for (int l = 0; l < lanes; ++l) sum[k][l] = T(0);
        }
        added = 0;
    };
    with_form<F, S>(s, piece.lines.vectors, [&](auto form) {
        using Form = decltype(form);
        constexpr int N = Form::batch;
        for_stretches<N>(p, piece, [&](const Spot(&spot)[N]) {
            sum_spots<Form, S, held>(f, s, spot, piece.lines, c, ready, sum);
#pragma unroll
            for (int b = 0; b < N; ++b) n += spot[b].n;
            added += N;
            if (added >= additions) fold();
        });
    });
    fold();
    if (sizeof(T) == 4 && untrusted<F>(total, n)) {
        for (int k = 0; k < m; ++k) total[k] = 0.0;
        for_stretches<1>(p, piece, [&](const Spot(&spot)[1]) {
            double more[m];
            add_exactly<F, S>(f, s, spot[0].at, piece.lines.gate.of(spot[0]), 1, 1, spot[0].n, c.c,
                              more);
            for (int k = 0; k < m; ++k) total[k] += more[k];
        });
    }
    add_threads(total);
}

template <class F, class S, unsigned held, class R>
__device__ __forceinline__ void map_piece(const F& f, const Sweep& s, const Planes& p,
                                          const Piece& piece,
                                          const Same<number<S>, F::coefficients>& c, R&& ready) {
    with_form<F, S>(s, piece.lines.vectors, [&](auto form) {
        using Form = decltype(form);
        constexpr int N = Form::batch;
        for_stretches<N>(p, piece, [&](const Spot(&spot)[N]) {
            map_spots<Form, S, held>(f, s, spot, piece.lines, c, ready);
        });
    });
}

template <class F, class S>
__global__ void __launch_bounds__(threads, resident<F, S>)
    sum_planes(const __grid_constant__ Sweep s, const __grid_constant__ Planes p, bool vectors,
               bool backward, const __grid_constant__ Task task, double* partial,
               unsigned* tickets) {
    using T = number<S>;
    const F f{s.setting};
    const Kept kept{p.pieces, p.shape.channels, partials<F>};
    for_items(p.shape.channels, p.pieces * p.groups, backward, [&](index channel, index slab) {
        const Piece piece = piece_of(p, channel, slab, vectors);
        Same<T, F::coefficients> c;
        double sum[F::sums], shift = 0.0;
        const auto go = [&](auto&& ready) { sum_piece<F, S, 0>(f, s, p, piece, c, ready, sum); };
        if constexpr (std::is_same_v<F, Moments>) {
            const index into = piece.begin * p.stretch();
            bool due = true;
            go([&] {
                if (!due) return;
                due = false;
                shift = shift_of<S>(s, piece.first + into, 1, p.shape.inner - into);
                c.c[MEAN] = T(shift);
            });
        } else {
            with_coefficients(task, s.function, piece.g, channel, c, go);
        }
        if (threadIdx.x == 0) {
            keep<F>(sum, p.elements(piece.g, piece.slab), shift,
                    partial + kept.at(piece.g, 0, channel, piece.slab), kept.at(0, 1, 0, 0));
        }
        if (last_of(tickets + channel, p.pieces * p.groups)) {
            finish_channels<F>(task, s.function, channel, 1, kept, partial);
        }
    });
}

template <class F, class S>
__global__ void __launch_bounds__(threads, resident<F, S>)
    map_planes(const __grid_constant__ Sweep s, const __grid_constant__ Planes p, bool vectors,
               bool backward, const __grid_constant__ Task task) {
    const F f{s.setting};
    for_items(p.shape.channels, p.pieces * p.groups, backward, [&](index channel, index slab) {
        const Piece piece = piece_of(p, channel, slab, vectors);
        Same<number<S>, F::coefficients> c;
        with_coefficients(task, s.function, piece.g, channel, c,
                          [&](auto&& ready) { map_piece<F, S, 0>(f, s, p, piece, c, ready); });
    });
}

// The rows of a slab that a tile looks at.
struct Slab {
    index g, slab, tile;
    int rows, across;   // threads across a row
    index length;       // of a row
    index first;        // element of the first one
    index single;       // rows as the tensor has them
    int channels;       // that the tile has
    int copies;         // of them in a row
    index gate_stride;  // bits
    Lines lines;
};

__device__ __forceinline__ Slab slab_of(const Tiles& t, index tile, index slab, bool vectors) {
    Slab s{};
    s.tile = tile;
    s.g = group_of(slab, t.groups);
    s.slab = slab_of_group(slab, t.groups);
    const index rows = t.shape.outer_of(s.g), whole = t.wide == 1 ? rows : rows / t.wide;
    const bool rest = t.wide > 1 && s.slab == t.slabs - 1;
    const index begin = rest ? whole : std::min(s.slab * t.each, whole);
    s.rows = int(rest ? rows - whole * t.wide : std::min(whole - begin, index(t.each)));
    s.across = rest ? t.rest_across : t.across;
    s.length = rest ? t.shape.channels : t.width;
    s.first = (s.g * t.shape.group + begin * t.wide) * t.shape.channels;
    s.single = rest ? s.rows : s.rows * t.wide;
    const index left = t.shape.channels - s.tile * s.across * lanes;
    s.channels = int(t.wide > 1 ? t.shape.channels : std::min(left, index(s.across) * lanes));
    s.copies = t.wide > 1 ? int(s.length / t.shape.channels) : 1;
    s.gate_stride = 8 * bits_of_run(s.length);
    s.lines.vectors = vectors && s.length % lanes == 0;
    s.lines.paired = s.across > 1;
    s.lines.gate = {8 * (s.g * t.group_bits + begin * bits_of_run(t.width)) - s.first,
                    s.gate_stride - s.length};
    return s;
}

// Where a thread is in a slab: its row, and its first column.
struct Corner {
    int row, rows;  // and rows at once
    index column;
    __device__ __forceinline__ explicit Corner(const Slab& slab)
        : row(int(threadIdx.x) / slab.across),
          rows(threads / slab.across),
          column((slab.tile * slab.across + int(threadIdx.x) % slab.across) * lanes) {}
};

// Calls f(spots) for the rows of a slab, the same number of times in all threads.
template <int N, class F>
__device__ __forceinline__ void for_rows(const Slab& slab, const Corner& corner, F&& f) {
    const index left = slab.length - corner.column, ahead = corner.rows * slab.length;
    const int n = left <= 0 ? 0 : left < lanes ? int(left) : lanes;
    int line = corner.row;
    index at = slab.first + line * slab.length + corner.column;
    for (int base = 0; base < slab.rows; base += N * corner.rows) {
        Spot spot[N];
#pragma unroll
        for (int b = 0; b < N; ++b) {
            spot[b] = {at, line, line < slab.rows ? n : 0};
            line += corner.rows;
            at += ahead;
        }
        f(spot);
    }
}

// How far the channel of each lane is from the tile's first; below 0: there is none.
__device__ __forceinline__ void channels_of(const Slab& slab, const Corner& corner,
                                            int (&from_first)[lanes]) {
    const index begin = corner.column - int(threadIdx.x) % slab.across * lanes;
#pragma unroll
    for (int l = 0; l < lanes; ++l) {
        const index i = corner.column + l;
        from_first[l] = i >= slab.length  ? -1
                        : slab.copies > 1 ? int(i) % slab.channels
                                          : int(i - begin);
    }
}
__device__ __forceinline__ index first_channel(const Slab& slab) {
    return slab.tile * slab.across * lanes;  // a row that is put together has one tile
}

template <class F, class S>
__global__ void __launch_bounds__(threads)
    map_rows(const __grid_constant__ Sweep s, const __grid_constant__ Tiles t, bool vectors,
             bool backward, const __grid_constant__ Task task) {
    const F f{s.setting};
    for_items(t.tiles, t.slabs * t.groups, backward, [&](index tile, index above) {
        const Slab slab = slab_of(t, tile, above, vectors);
        const Corner corner(slab);
        int channel[lanes];
        channels_of(slab, corner, channel);
        Each<number<S>, F::coefficients> c;
        with_coefficients(task, s.function, slab.g, first_channel(slab), slab.channels, channel, c,
                          [&](auto&& ready) {
                              with_form<F, S>(s, slab.lines.vectors, [&](auto form) {
                                  using Form = decltype(form);
                                  constexpr int N = Form::batch;
                                  for_rows<N>(slab, corner, [&](const Spot(&spot)[N]) {
                                      map_spots<Form, S, 0>(f, s, spot, slab.lines, c, ready);
                                  });
                              });
                          });
    });
}

template <class F, class S>
__global__ void __launch_bounds__(threads)
    sum_rows(const __grid_constant__ Sweep s, const __grid_constant__ Tiles t, bool vectors,
             bool backward, const __grid_constant__ Task task, double* partial, unsigned* tickets) {
    using T = number<S>;
    constexpr int m = F::sums;
    __shared__ double part[threads * lanes];
    const F f{s.setting};
    const index channels = t.shape.channels;
    const Kept kept{t.slabs, channels, partials<F>};
    for_items(t.tiles, t.slabs * t.groups, backward, [&](index tile, index above) {
        const Slab slab = slab_of(t, tile, above, vectors);
        const Corner corner(slab);
        const index first = first_channel(slab);
        int channel[lanes];
        channels_of(slab, corner, channel);
        Each<T, F::coefficients> c{};
        const auto shift = [&](int p) {
            return slab.rows ? shift_of<S>(s, slab.first + first + p, channels, slab.single) : 0.0;
        };
        T sum[m][lanes] = {};
        const auto go = [&](auto&& ready) {
            with_form<F, S>(s, slab.lines.vectors, [&](auto form) {
                using Form = decltype(form);
                constexpr int N = Form::batch;
                for_rows<N>(slab, corner, [&](const Spot(&spot)[N]) {
                    sum_spots<Form, S, 0>(f, s, spot, slab.lines, c, ready, sum);
                });
            });
        };
        if constexpr (std::is_same_v<F, Moments>) {
            bool due = true;
            go([&] {
                if (!due) return;
                due = false;
#pragma unroll
                for (int l = 0; l < lanes; ++l) {
                    if (channel[l] >= 0) c.c[l][MEAN] = T(shift(channel[l]));
                }
            });
        } else {
            with_coefficients(task, s.function, slab.g, first, slab.channels, channel, c, go);
        }
        double total[lanes][m];
#pragma unroll
        for (int l = 0; l < lanes; ++l) {
#pragma unroll
            for (int k = 0; k < m; ++k) total[l][k] = double(sum[k][l]);
            const index n = slab.rows > corner.row
                                ? (slab.rows - corner.row + corner.rows - 1) / corner.rows
                                : 0;
            if (sizeof(T) == 4 && channel[l] >= 0 && untrusted<F>(total[l], n)) {
                const Spot one{slab.first + corner.row * slab.length + corner.column + l,
                               corner.row, 1};
                add_exactly<F, S>(f, s, one.at, slab.lines.gate.of(one), corner.rows * slab.length,
                                  corner.rows * slab.gate_stride, n, c.c[l], total[l]);
            }
        }
        // Threads of a warp that have the same columns, then those of others, then columns of the
        // same channel.
        const int apart = slab.across > warp ? slab.across : warp, columns = slab.across * lanes;
        const int deep = threads / apart,
                  at = int(threadIdx.x) / apart * columns + int(threadIdx.x) % slab.across * lanes;
        int together = 1;
        while (together < warp && together < slab.copies) together *= 2;
#pragma unroll
        for (int k = 0; k < m; ++k) {
#pragma unroll
            for (int l = 0; l < lanes; ++l) {
                double x = total[l][k];
                for (int half = warp / 2; half >= slab.across; half /= 2) {
                    x += __shfl_xor_sync(whole_warp, x, half);
                }
                if (int(threadIdx.x) % apart < slab.across) part[at + l] = x;
            }
            __syncthreads();
            for (int base = 0; base < slab.channels; base += threads / together) {
                const int p = base + int(threadIdx.x) / together;
                double x = 0.0;
                if (p < slab.channels) {
                    for (int j = int(threadIdx.x) % together; j < slab.copies; j += together) {
                        for (int r = 0; r < deep; ++r) {
                            x += part[r * columns + p + j * slab.channels];
                        }
                    }
                }
                x = add_among(x, together);
                if (p < slab.channels && threadIdx.x % together == 0) {
                    partial[kept.at(slab.g, k, first + p, slab.slab)] = x;
                }
            }
            __syncthreads();
        }
        if constexpr (std::is_same_v<F, Moments>) {
            for (int p = int(threadIdx.x) / together; p < slab.channels; p += threads / together) {
                if (threadIdx.x % together != 0) continue;
                double* const to = partial + kept.at(slab.g, 0, first + p, slab.slab);
                const index next = kept.at(0, 1, 0, 0);
                const double both[2] = {to[0], to[next]};
                keep<F>(both, slab.single, shift(p), to, next);
            }
        }
        if (last_of(tickets + slab.tile, t.slabs * t.groups)) {
            finish_channels<F>(task, s.function, first, slab.channels, kept, partial);
        }
    });
}

// f(S()) for the type that elements are stored as.
template <class F>
void with_stored(Dtype dtype, F&& f) {
    switch (dtype) {
        case Dtype::f32: return f(float());
        case Dtype::f64: return f(double());
        default: return f(std::uint16_t());
    }
}

template <class F>
void sum_one(const Launch& l, const Sweep& s, const Task& task) {
    with_stored(s.dtype, [&](auto stored) {
        using S = decltype(stored);
        const Walk& w = l.walk;
        const dim3 blocks = blocks_of(w.parts(), w.slabs() * w.groups());
        if (w.rows) {
            launch(l.stream, sum_rows<F, S>, blocks, 0, s, w.tiles, w.vectors, w.backward, task,
                   l.partial, l.tickets);
        } else {
            launch(l.stream, sum_planes<F, S>, blocks, 0, s, w.planes, w.vectors, w.backward, task,
                   l.partial, l.tickets);
        }
    });
}

template <class F>
void map_one(const Launch& l, const Sweep& s, const Task& task) {
    with_stored(s.dtype, [&](auto stored) {
        using S = decltype(stored);
        const Walk& w = l.walk;
        const dim3 blocks = blocks_of(w.parts(), w.slabs() * w.groups());
        if (w.rows) {
            launch(l.stream, map_rows<F, S>, blocks, 0, s, w.tiles, w.vectors, w.backward, task);
        } else {
            launch(l.stream, map_planes<F, S>, blocks, 0, s, w.planes, w.vectors, w.backward, task);
        }
    });
}

// The sums and the map of a channel that fits in shared memory: it is read once.
template <class Sum, class Map, class S>
__global__ void __launch_bounds__(threads, resident<Map, S>)
    hold(const __grid_constant__ Sweep sums, const __grid_constant__ Sweep maps,
         const __grid_constant__ Planes p, bool vectors, const __grid_constant__ Task task,
         index bytes) {
    constexpr unsigned held = Sum::reads & ~(1u << RES);
    constexpr bool moments = std::is_same_v<Sum, Moments>;
    extern __shared__ uint4 memory[];
    char* const shared = reinterpret_cast<char*>(memory);
    __shared__ double coefficient[most_coefficients];
    __shared__ double found[3];
    const index c = blockIdx.x;
    Piece piece = piece_of(p, c, 0, vectors);
    piece.lines.shared = shared;
    piece.lines.shared_bytes = bytes;
    for_stretches<1>(p, piece, [&](const Spot(&spot)[1]) {
        const index at = spot[0].at;
        const int n = spot[0].n;
        int slot = 0;
#pragma unroll
        for (int j = 0; j < inputs; ++j) {
            if (!(held >> j & 1)) continue;
            S* const to =
                reinterpret_cast<S*>(shared + slot++ * bytes) + piece.lines.held.of(spot[0]);
            if (vectors && n > 0 && sums.in[j]) {
                using W = Word<S>;
                const W* const from =
                    reinterpret_cast<const W*>(static_cast<const S*>(sums.in[j]) + at);
#pragma unroll
                for (int k = 0; k < words<S>; ++k) {
                    __pipeline_memcpy_async(reinterpret_cast<W*>(to) + k, from + k, sizeof(W));
                }
            } else {
                const Stored<S> raw = fetch<false, S>(sums.in[j], at, n);
#pragma unroll
                for (int l = 0; l < lanes; ++l) {
                    if (l < n) to[l] = raw.of[l];
                }
            }
        }
    });
    __pipeline_commit();
    double shift = 0.0;
    if constexpr (moments) {
        shift = shift_of<S>(sums, piece.first, 1, p.shape.inner);
        if (threadIdx.x == 0) coefficient[MEAN] = shift;
    } else {
        if (threadIdx.x == 0) channel_coefficients(task, sums.function, 0, c, coefficient);
    }
    __pipeline_wait_prior(0);
    __syncthreads();
    Same<number<S>, Sum::coefficients> of_sum;
    load(coefficient, of_sum);
    double total[Sum::sums];
    const auto ready = [] {};
    sum_piece<Sum, S, held>(Sum{sums.setting}, sums, p, piece, of_sum, ready, total);
    if (threadIdx.x == 0) {
        if constexpr (moments) {
            keep<Sum>(total, p.shape.count_of(0), shift, found, 1);
            set_channel_tables(task, 0, c, found[1], found[2]);
        } else {
            for (int k = 0; k < Sum::sums; ++k) task.sum(k, 0, c) = total[k];
        }
        channel_coefficients(task, maps.function, 0, c, coefficient);
    }
    __syncthreads();
    if (threadIdx.x == threads - warp) {  // while the others map
        if constexpr (moments) {
            move_running(task, 0, c, found[1], found[2]);
        } else {
            finish_channel(task, sums.function, c);
        }
    }
    Same<number<S>, Map::coefficients> of_map;
    load(coefficient, of_map);
    map_piece<Map, S, held>(Map{maps.setting}, maps, p, piece, of_map, ready);
}

template <class Sum, class Map>
void hold_one(const Launch& l, const Sweep& sums, const Sweep& maps, const Task& task, index bytes,
              index most) {
    with_stored(sums.dtype, [&](auto stored) {
        using S = decltype(stored);
        const auto kernel = hold<Sum, Map, S>;
        static const bool allowed = [&] {
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       int(most)),
                  "cudaFuncSetAttribute");
            return true;
        }();
        (void)allowed;
        const int arrays = arrays_of(Sum::reads & ~(1u << RES));
        launch(l.stream, kernel, unsigned(l.walk.planes.shape.channels),
               std::size_t(arrays * bytes), sums, maps, l.walk.planes, l.walk.vectors, task, bytes);
    });
}

}  // namespace normalization

SP_END
