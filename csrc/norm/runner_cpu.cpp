#include "norm/runner.hpp"

#include <unistd.h>

#include <algorithm>
#include <bitset>
#include <vector>

#include "core/buffer.hpp"
#include "core/isa_cpu.hpp"
#include "core/threads_cpu.hpp"
#include "norm/cut.hpp"
#include "norm/exactly_cpu.hpp"
#include "norm/sweep_cpu.hpp"

SP_BEGIN

namespace normalization {

namespace {

// The second cache, which a core has for itself; a virtual machine may tell anything.
index near_cache() {
    index bytes = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return std::clamp<index>(bytes, index(256) << 10, index(4) << 20);
}
// Past this many bytes, output goes past the caches: it would only push the input out of them. Not
// a share of the third cache, which is shared with others, and of a size that machines overstate.
constexpr index streamed_from = index(16) << 20;

struct Stage {
    Sweep sweep;
    int coefficients = coefficients_of(sweep.function),
        sums = sums_of(sweep.function, sweep.activation);
    bool maps = sums == 0 && !without_pass(sweep.function);
    double* partial = nullptr;  // (groups, slabs, sums, channels)
};

void map_isa(const Sweep& s, const Runs& runs, const double* one, const void* each) {
    switch (s.function) {
        case Function::forward: SP_PICK_ISA(norm_map_forward, s, runs, one, each);
        case Function::backward: SP_PICK_ISA(norm_map_backward, s, runs, one, each);
        default: SP_PICK_ISA(norm_map_second, s, runs, one, each);
    }
}
void sum_isa(const Sweep& s, const Runs& runs, const double* one, const void* each, double* sums) {
    switch (s.function) {
        case Function::moments: SP_PICK_ISA(norm_sum_forward, s, runs, one, each, sums);
        case Function::backward_sums: SP_PICK_ISA(norm_sum_backward, s, runs, one, each, sums);
        default: SP_PICK_ISA(norm_sum_second, s, runs, one, each, sums);
    }
}

// Takes the passes one after the other, or channel by channel.
class Runner {
   public:
    Runner(const Stream& stream, const Task& task, const std::vector<Sweep>& passes)
        : stream_(stream), task_(task), cut(task.norm.shape) {
        for (const Sweep& sweep : passes) {
            Stage pass{sweep};
            pass.sweep.stream =
                !pass.sums && cut.shape.size() * bytes_of(sweep.dtype) >= streamed_from;
            passes_.push_back(pass);
        }
    }

    void go() {
        const Shape& s = cut.shape;
        index doubles = 0;
        for (const Stage& p : passes_) doubles += cut.groups() * cut.slabs * p.sums * s.channels;
        std::vector<double> partial(doubles);
        double* at = partial.data();
        index arrays = 0;
        for (Stage& p : passes_) {
            p.partial = at;
            at += cut.groups() * cut.slabs * p.sums * s.channels;
            index here = 0;
            for (const void* a : p.sweep.in) here += a != nullptr;
            arrays = std::max(arrays, here);
        }
        const double elements = double(s.size()) * double(passes_.size());
        const int members = members_for(cost::element * elements);
        // All of it before the first number is written.
        if (cut.rows) {
            for (const Stage& p : passes_) {
                of_member_ = std::max<index>(of_member_, (p.sums + p.coefficients) * row_stride);
            }
            tables_ = Buffer(stream_, members * of_member_ * sizeof(double));
        }
        const index channel = s.outer * s.inner * bytes_of(s.dtype) * arrays;
        const bool fits = !cut.rows && 2 * channel <= near_cache();
        run_on(members, stream_, [&](const Context& context) {
            const bool alone = s.channels % context.size == 0 || s.channels >= 8 * context.size;
            if (fits && alone) {
                channel_by_channel(context);
            } else {
                pass_by_pass(context);
            }
        });
    }

   private:
    // The sums of a pass, and what follows from them.
    void finish(const Stage& p, Range channels) const {
        if (p.sweep.function == Function::moments) {
            constexpr index tile = 256;
            double mean[tile], square[tile];
            for (index g = 0; g < cut.groups(); ++g) {
                for (index begin = channels.begin; begin < channels.end; begin += tile) {
                    const Range some{begin, std::min(begin + tile, channels.end)};
                    total_moments(p, g, some, mean, square);
                    for (index c = some.begin; c < some.end; ++c) {
                        set_statistics(task_, g, c, mean[c - begin], square[c - begin]);
                    }
                }
            }
            return;
        }
        const int first = first_sum(p.sweep.function);
        for (index g = 0; g < cut.groups(); ++g) {
            for (int k = 0; k < p.sums; ++k) {
                total(p, g, k, channels, &task_.sum(first + k, g, channels.begin));
            }
        }
        for (index c = channels.begin; c < channels.end; ++c) {
            normalization::finish(task_, p.sweep.function, c);
        }
    }

    // Sums of a pass over the slabs, for channels: out[c - begin].
    void total(const Stage& p, index g, int k, Range channels, double* out) const {
        std::fill_n(out, channels.size(), 0.0);
        for (index s = 0; s < cut.slabs; ++s) {
            if (cut.slab_count(g, s) == 0) continue;
            const double* const from = at(p, g, s, k) + channels.begin;
            for (index c = 0; c < channels.size(); ++c) out[c] += from[c];
        }
    }
    // The mean and the sum of squares about it, from those of the slabs.
    void total_moments(const Stage& p, index g, Range channels, double* mean,
                       double* square) const {
        const index n = channels.size();
        const double count = double(cut.shape.count_of(g));
        std::fill_n(mean, n, 0.0);
        std::fill_n(square, n, 0.0);
        for (index s = 0; s < cut.slabs; ++s) {
            const double share = double(cut.slab_count(g, s));
            if (share == 0.0) continue;
            const double* const m = at(p, g, s, 0) + channels.begin;
            // A mean of equal means is that mean, to the bit.
            if (share == count) {
                std::copy_n(m, n, mean);
            } else {
                for (index c = 0; c < n; ++c) mean[c] += share * m[c];
            }
        }
        for (index s = 0; s < cut.slabs; ++s) {
            const double share = double(cut.slab_count(g, s));
            if (share == 0.0) continue;
            const double* const m = at(p, g, s, 0) + channels.begin;
            const double* const sq = at(p, g, s, 1) + channels.begin;
            if (s == 0 && share != count) {
                for (index c = 0; c < n; ++c) mean[c] /= count;
            }
            for (index c = 0; c < n; ++c) {
                const double d = m[c] - mean[c];
                square[c] += sq[c] + share * (d * d);
            }
        }
    }

    double* at(const Stage& p, index g, index s, int k) const {
        return p.partial + ((g * cut.slabs + s) * p.sums + k) * cut.shape.channels;
    }

    // Whether floats do. The shift of moments is found by their loop.
    bool prepare(const Stage& p, index g, index c, double* out) const {
        if (p.sweep.function == Function::moments) return true;
        return coefficients(task_, p.sweep.function, g, c, out) || cut.shape.dtype == Dtype::f64;
    }
    void take_plane(const Stage& p, index g, index s, index c) const {
        if (p.sums) {
            sum_planes(p, g, s, c);
        } else if (p.maps) {
            map_planes(p, g, s, c);
        }
    }
    void sum_planes(const Stage& p, index g, index s, index c) const {
        if (cut.slab_count(g, s) == 0) return;
        double one[most_coefficients] = {}, sums[most_sums];
        const Runs runs = cut.planes(g, s, c);
        const bool floats = prepare(p, g, c, one);
        if (floats) sum_isa(p.sweep, runs, one, nullptr, sums);
        if (!floats || untrusted(p.sweep, runs, sums, p.sums)) {
            sum_exactly(p.sweep, runs, 0, one, sums);
        }
        for (int k = 0; k < p.sums; ++k) at(p, g, s, k)[c] = sums[k];
    }
    void map_planes(const Stage& p, index g, index s, index c) const {
        if (cut.slab_count(g, s) == 0) return;
        double one[most_coefficients];
        const Runs runs = cut.planes(g, s, c);
        if (prepare(p, g, c, one)) {
            map_isa(p.sweep, runs, one, nullptr);
        } else {
            map_exactly(p.sweep, runs, 0, one);
        }
    }

    // Each channel while it is in cache.
    void channel_by_channel(const Context& context) const {
        const Range mine = context.share(cut.shape.channels);
        for (index c = mine.begin; c < mine.end; ++c) {
            for (const Stage& p : passes_) {
                for (index g = 0; g < cut.groups(); ++g) {
                    for (index s = 0; s < cut.slabs; ++s) {
                        take_plane(p, g, s, c);
                    }
                }
                if (!p.maps) finish(p, {c, c + 1});
            }
        }
    }

    void pass_by_pass(const Context& context) const {
        bool back = false;
        for (const Stage& p : passes_) {
            if (p.sums || p.maps) take_elements(context, p, back);
            if (!p.maps) {
                context.sync();
                finish(p, context.share(cut.shape.channels));
                context.sync();
            }
            back = !back;  // what was touched last is still in cache
        }
    }

    void take_elements(const Context& context, const Stage& p, bool back) const {
        if (!cut.rows) return take_planes(context, p, back);
        if (cut.shape.dtype == Dtype::f64) return take_rows<double>(context, p, back);
        take_rows<float>(context, p, back);
    }

    void take_planes(const Context& context, const Stage& p, bool back) const {
        const index of_channel = cut.groups() * cut.slabs;
        const Range mine = context.share(of_channel * cut.shape.channels);
        for (index u = 0; u < mine.size(); ++u) {
            const index unit = back ? mine.end - 1 - u : mine.begin + u;
            take_plane(p, unit % of_channel / cut.slabs, unit % cut.slabs, unit / of_channel);
        }
    }

    template <class T>
    void take_rows(const Context& context, const Stage& p, bool back) const {
        const Range mine = context.share(cut.groups() * cut.slabs);
        double* const sums = static_cast<double*>(tables_.data()) + context.rank * of_member_;
        Columns<T> columns{reinterpret_cast<T*>(sums + p.sums * row_stride), {}};
        for (index begin = 0; begin < cut.width; begin += row_tile) {
            const index length = std::min(row_tile, cut.width - begin);
            index prepared = -1;
            for (index u = 0; u < mine.size(); ++u) {
                const index unit = back ? mine.end - 1 - u : mine.begin + u;
                const index g = unit / cut.slabs, s = unit % cut.slabs;
                if (cut.slab_count(g, s) == 0) continue;
                const bool stale = g != prepared && p.sweep.function != Function::moments;
                if (stale) prepare_table(p, g, begin, length, columns);
                prepared = g;
                Runs wide = cut.wide_part(g, s), rest = cut.rest(g, s);
                wide.length = length;
                for (Runs* runs : {&wide, &rest}) {
                    runs->begin += begin;
                    runs->gate += begin / 8;
                }
                if (p.sums) {
                    sum_rows(p, g, s, begin, wide, rest, columns, sums);
                } else {
                    map_rows(p, g, begin, wide, columns);
                    map_rows(p, g, begin, rest, columns);
                }
            }
        }
    }

    // The coefficients of a tile's columns, and which of these are for double.
    template <class T>
    struct Columns {
        T* table;
        std::bitset<row_tile> exact;
    };

    template <class T>
    void prepare_table(const Stage& p, index g, index begin, index length, Columns<T>& to) const {
        const index channels = cut.shape.channels;
        double one[most_coefficients];
        const index own = std::min(length, channels);
        to.exact.reset();
        for (index i = 0; i < own; ++i) {
            if (!prepare(p, g, begin + i, one)) to.exact.set(i);
            for (int k = 0; k < p.coefficients; ++k) to.table[k * row_stride + i] = T(one[k]);
        }
        if (to.exact.any()) {
            for (index i = own; i < length; ++i) to.exact[i] = to.exact[i - own];
        }
        for (int k = 0; k < p.coefficients; ++k) {
            T* const row = to.table + k * row_stride;
            for (index i = own; i < length; ++i) row[i] = row[i - own];
        }
    }

    // Column i of a tile: f(its run, its bit, its coefficients).
    template <class F>
    void with_column(const Stage& p, index g, index begin, const Runs& runs, index i, F&& f) const {
        double one[most_coefficients] = {};
        prepare(p, g, (begin + i) % cut.shape.channels, one);
        f(runs.part(i, 1), int(i % 8), one);
    }

    // Each element once, since y may be x: the columns in double, in sixteens as the bits of a gate
    // are stored, and what lies between.
    template <class T>
    void map_rows(const Stage& p, index g, index begin, const Runs& runs,
                  const Columns<T>& columns) const {
        if (runs.count == 0) return;
        if (columns.exact.none()) return map_isa(p.sweep, runs, nullptr, columns.table);
        constexpr index unit = 16;
        const auto any_exact = [&](index i) {
            bool any = false;
            for (index j = i; j < i + unit; ++j) any = any || columns.exact[j];
            return any;
        };
        for (index i = 0, end = 0; i < runs.length; i = end) {
            const bool exact = any_exact(i);
            while (end < runs.length && any_exact(end) == exact) end += unit;
            end = std::min(end, runs.length);
            if (!exact) {
                map_isa(p.sweep, runs.part(i, end - i), nullptr, columns.table + i);
                continue;
            }
            for (index j = i; j < end; ++j) {
                with_column(p, g, begin, runs, j, [&](const Runs& r, int bit, const double* one) {
                    map_exactly(p.sweep, r, bit, one);
                });
            }
        }
    }

    template <class T>
    void sum_tile(const Stage& p, index g, index begin, const Runs& runs, const Columns<T>& columns,
                  double* sums) const {
        sum_isa(p.sweep, runs, nullptr, columns.table, sums);
        if (columns.exact.none() && !any_untrusted(p.sweep, runs, sums, p.sums)) return;
        for (index i = 0; i < runs.length; ++i) {
            double here[most_sums];
            for (int k = 0; k < p.sums; ++k) here[k] = sums[k * row_stride + i];
            if (!columns.exact[i] && !untrusted(p.sweep, runs.part(i, 1), here, p.sums)) continue;
            with_column(p, g, begin, runs, i, [&](const Runs& r, int bit, const double* one) {
                sum_exactly(p.sweep, r, bit, one, here);
            });
            for (int k = 0; k < p.sums; ++k) sums[k * row_stride + i] = here[k];
        }
    }

    // Sums of wide rows, folded onto their channels.
    template <class T>
    void sum_rows(const Stage& p, index g, index s, index begin, const Runs& wide, const Runs& rest,
                  const Columns<T>& columns, double* sums) const {
        const index channels = cut.shape.channels;
        const index n = std::min(wide.length, channels);
        const bool moments = p.sweep.function == Function::moments;
        if (wide.count) {
            sum_tile(p, g, begin, wide, columns, sums);
            if (moments) {
                fold_moments(p, g, s, begin, n, wide, sums);
            } else {
                for (int k = 0; k < p.sums; ++k) {
                    double* const to = at(p, g, s, k) + begin;
                    std::copy_n(sums + k * row_stride, n, to);
                    for (index j = n; j < wide.length; ++j) {
                        to[j % channels] += sums[k * row_stride + j];
                    }
                }
            }
        }
        if (rest.count == 0) return;
        sum_tile(p, g, begin, rest, columns, sums);
        for (int k = 0; k < p.sums; ++k) {
            double* const to = at(p, g, s, k);
            const double* const from = sums + k * row_stride;
            if (moments && wide.count) {
                if (k == 0)
                    merge_moments(p, g, s, double(wide.count * wide.length / channels),
                                  double(rest.count), from);
            } else if (wide.count) {
                for (index c = 0; c < channels; ++c) to[c] += from[c];
            } else {
                std::copy_n(from, channels, to);
            }
        }
    }

    void fold_moments(const Stage& p, index g, index s, index begin, index n, const Runs& wide,
                      const double* sums) const {
        double* const mean = at(p, g, s, 0) + begin;
        double* const square = at(p, g, s, 1) + begin;
        const double *const m = sums, *const sq = sums + row_stride;
        std::copy_n(m, n, mean);
        std::copy_n(sq, n, square);
        if (wide.length == n) return;
        const double parts = double(wide.length / n);
        // About the first part's mean, so that parts with equal means leave it as it is.
        for (index c = 0; c < n; ++c) {
            double offset = 0.0;
            for (index j = c + n; j < wide.length; j += n) offset += m[j] - m[c];
            mean[c] = m[c] + offset / parts;
        }
        for (index c = 0; c < n; ++c) {
            double total = 0.0;
            for (index j = c; j < wide.length; j += n) {
                const double d = m[j] - mean[c];
                total += sq[j] + double(wide.count) * (d * d);
            }
            square[c] = total;
        }
    }

    void merge_moments(const Stage& p, index g, index s, double n, double more,
                       const double* sums) const {
        double* const mean = at(p, g, s, 0);
        double* const square = at(p, g, s, 1);
        for (index c = 0; c < cut.shape.channels; ++c) {
            const double d = sums[c] - mean[c];
            mean[c] += d * (more / (n + more));
            square[c] += sums[row_stride + c] + d * d * (n * more / (n + more));
        }
    }

    Stream stream_;
    const Task& task_;
    const Cut cut;
    std::vector<Stage> passes_;
    Buffer tables_;  // of rows: each member's sums and coefficients
    index of_member_ = 0;
};

}  // namespace

void take(const Stream& stream, const Task& task, const std::vector<Sweep>& passes) {
    Runner(stream, task, passes).go();
}

}  // namespace normalization

SP_END
