#include "norm/fused.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "core/buffer.hpp"
#include "core/isa.hpp"
#include "core/philox.hpp"

SP_BEGIN

namespace normalization {

namespace {

// Elements of a slab, over which sums are taken before they are combined: of a channel, and of the
// rows of all channels. A function of the shape alone, so sums have the same bits on any team.
constexpr index channel_slab = 32768, row_slab = 131072, least_rows = 256, most_slabs = 64;

// The second cache, which a core has for itself; a virtual machine may tell anything.
index near_cache() {
    index bytes = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return std::clamp<index>(bytes, index(256) << 10, index(4) << 20);
}
// Past this many bytes, output goes past the caches: it would only push the input out of them.
constexpr index streamed_from = index(16) << 20;

constexpr index up(index n, index unit) { return (n + unit - 1) / unit; }
index divisor(index a, index b) { return b == 0 ? a : divisor(b, a % b); }
constexpr index bits_of_run(index n) { return 2 * up(n, 16); }  // bytes, of whole packs

// How a tensor is cut.
class Cut {
   public:
    explicit Cut(const Shape& s) : shape(s), rows(s.inner == 1) {
        group = std::max<index>(std::min(s.group, s.outer), 1);
        if (rows) {
            wide = wide_rows(group, s.channels);
            width = wide * s.channels;
            each = std::max(
                {least_rows, row_slab / std::max<index>(s.channels, 1), up(group, most_slabs)});
            each = up(each, wide) * wide;
            slabs = up(group, each);
        } else if (s.inner <= channel_slab) {
            each = channel_slab / s.inner;
            slabs = up(group, each);
        } else {
            cuts = up(s.inner, channel_slab);
            slabs = group * cuts;
        }
    }

    Shape shape;
    bool rows;
    index group;                // outer units that share statistics
    index slabs = 0;            // of a group
    index each = 1, cuts = 1;   // outer units of a slab, or slabs of one
    index wide = 1, width = 0;  // rows that are taken as one, and their length
    index groups() const { return shape.groups(); }
    index outer_of(index g) const { return std::min(group, shape.outer - g * group); }
    index count_of(index g) const { return outer_of(g) * shape.inner; }

    // Elements of each channel in a slab; 0 past the end of the last group.
    index slab_count(index g, index s) const {
        if (cuts > 1) {
            if (s / cuts >= outer_of(g)) return 0;
            return std::min(channel_slab, shape.inner - s % cuts * channel_slab);
        }
        return std::clamp<index>(outer_of(g) - s * each, 0, each) * shape.inner;
    }

    // A channel's share of a slab.
    Runs planes(index g, index s, index c) const {
        const index first = g * group + (cuts > 1 ? s / cuts : s * each);
        const index into = cuts > 1 ? s % cuts * channel_slab : 0;
        const index bits = bits_of_run(shape.inner);
        const index count = slab_count(g, s);
        const index length = cuts > 1 ? count : shape.inner;
        return {count / length,
                shape.channels * shape.inner,
                length,
                (first * shape.channels + c) * shape.inner + into,
                (first * shape.channels + c) * bits + into / 8,
                shape.channels * bits};
    }

    // The rows of a slab, `width` elements wide; and those left over, as narrow as they are.
    Runs wide_part(index g, index s) const {
        const index count = slab_count(g, s) / wide, bits = bits_of_run(width);
        return {count,
                width,
                width,
                (g * group + s * each) * shape.channels,
                g * group_bits() + s * each / wide * bits,
                bits};
    }
    Runs rest(index g, index s) const {
        const index n = slab_count(g, s), done = n / wide * wide, bits = bits_of_run(width);
        return {n - done,
                shape.channels,
                shape.channels,
                (g * group + s * each + done) * shape.channels,
                g * group_bits() + (s * each + done) / wide * bits,
                bits_of_run(shape.channels)};
    }
    index group_bits() const {
        return group / wide * bits_of_run(width) + group % wide * bits_of_run(shape.channels);
    }

   private:
    // Few channels: so many rows at once that a row of theirs is whole packs, and long.
    static index wide_rows(index rows, index channels) {
        if (channels == 0) return 1;
        const index unit = 16 / divisor(16, channels);
        if (unit * channels > row_tile) return 1;
        const index most =
            std::min(std::max<index>(512 / (unit * channels), 1), rows / (rows_at_least * unit));
        return unit * std::max<index>(most, rows >= unit ? 1 : 0) + (rows >= unit ? 0 : 1);
    }
    static constexpr index rows_at_least = 16;
};

using Coefficients = std::function<void(index group, index channel, double* out)>;

// One pass: its loops, and what they need of each channel. `finish` takes over when the sums of
// channels are complete.
struct Pass {
    Sweep sweep;
    int coefficients = 0, sums = 0;
    Coefficients prepare;
    std::function<void(Range channels)> finish;
    double* partial = nullptr;  // (groups, slabs, sums, channels)
};

void map_isa(const Sweep& s, const Runs& runs, const double* one, const void* each) {
    switch (s.work) {
        case Work::forward: SP_PICK_ISA(norm_map_forward, s, runs, one, each);
        case Work::backward: SP_PICK_ISA(norm_map_backward, s, runs, one, each);
        default: SP_PICK_ISA(norm_map_second, s, runs, one, each);
    }
}
void sum_isa(const Sweep& s, const Runs& runs, const double* one, const void* each, double* sums) {
    switch (s.work) {
        case Work::moments: SP_PICK_ISA(norm_sum_forward, s, runs, one, each, sums);
        case Work::backward_sums: SP_PICK_ISA(norm_sum_backward, s, runs, one, each, sums);
        default: SP_PICK_ISA(norm_sum_second, s, runs, one, each, sums);
    }
}

// Takes passes over the tensor; all but the last one sum.
class Runner {
   public:
    Runner(const Stream& stream, const Shape& shape) : stream_(stream), cut(shape) {}

    void add(Pass pass) { passes_.push_back(std::move(pass)); }

    void go() {
        const Shape& s = cut.shape;
        index doubles = 0;
        for (const Pass& p : passes_) doubles += cut.groups() * cut.slabs * p.sums * s.channels;
        std::vector<double> partial(doubles);
        double* at = partial.data();
        index arrays = 0;
        for (Pass& p : passes_) {
            p.partial = at;
            at += cut.groups() * cut.slabs * p.sums * s.channels;
            index here = 0;
            for (const void* a : p.sweep.in) here += a != nullptr;
            arrays = std::max(arrays, here);
        }
        const index channel = s.outer * s.inner * bytes_of(s.dtype) * arrays;
        const bool fits = !cut.rows && 2 * channel <= near_cache();
        run(stream_, double(s.size()) * double(passes_.size()), [&](const Context& context) {
            const bool alone = s.channels % context.size == 0 || s.channels >= 8 * context.size;
            if (fits && alone) {
                channel_by_channel(context);
            } else {
                pass_by_pass(context);
            }
        });
    }

    // Sums of a pass over the slabs, for channels: out[c - begin].
    void total(int pass, index g, int k, Range channels, double* out) const {
        const Pass& p = passes_[pass];
        std::fill_n(out, channels.size(), 0.0);
        for (index s = 0; s < cut.slabs; ++s) {
            if (cut.slab_count(g, s) == 0) continue;
            const double* const from = at(p, g, s, k) + channels.begin;
            for (index c = 0; c < channels.size(); ++c) out[c] += from[c];
        }
    }
    // The mean and the sum of squares about it, from those of the slabs.
    void total_moments(index g, Range channels, double* mean, double* square) const {
        const Pass& p = passes_[0];
        const index n = channels.size();
        const double count = double(cut.count_of(g));
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

    Stream stream_;
    const Cut cut;

   private:
    double* at(const Pass& p, index g, index s, int k) const {
        return p.partial + ((g * cut.slabs + s) * p.sums + k) * cut.shape.channels;
    }

    void sum_planes(const Pass& p, index g, index s, index c) const {
        if (cut.slab_count(g, s) == 0) return;
        double one[most_coefficients] = {}, sums[most_sums];
        if (p.prepare) p.prepare(g, c, one);
        sum_isa(p.sweep, cut.planes(g, s, c), one, nullptr, sums);
        for (int k = 0; k < p.sums; ++k) at(p, g, s, k)[c] = sums[k];
    }
    void map_planes(const Pass& p, index g, index s, index c) const {
        if (cut.slab_count(g, s) == 0) return;
        double one[most_coefficients];
        p.prepare(g, c, one);
        map_isa(p.sweep, cut.planes(g, s, c), one, nullptr);
    }

    // Each channel while it is in cache.
    void channel_by_channel(const Context& context) const {
        const Range mine = context.share(cut.shape.channels);
        for (index c = mine.begin; c < mine.end; ++c) {
            for (const Pass& p : passes_) {
                for (index g = 0; g < cut.groups(); ++g) {
                    for (index s = 0; s < cut.slabs; ++s) {
                        if (p.sums) {
                            sum_planes(p, g, s, c);
                        } else {
                            map_planes(p, g, s, c);
                        }
                    }
                }
                if (p.finish) p.finish({c, c + 1});
            }
        }
    }

    void pass_by_pass(const Context& context) const {
        bool back = false;
        for (const Pass& p : passes_) {
            if (cut.rows) {
                if (cut.shape.dtype == Dtype::f64) {
                    take_rows<double>(context, p, back);
                } else {
                    take_rows<float>(context, p, back);
                }
            } else {
                take_planes(context, p, back);
            }
            if (p.finish) {
                context.sync();
                p.finish(context.share(cut.shape.channels));
                context.sync();
            }
            back = !back;  // what was touched last is still in cache
        }
    }

    void take_planes(const Context& context, const Pass& p, bool back) const {
        const index of_channel = cut.groups() * cut.slabs;
        const Range mine = context.share(of_channel * cut.shape.channels);
        for (index u = 0; u < mine.size(); ++u) {
            const index unit = back ? mine.end - 1 - u : mine.begin + u;
            const index c = unit / of_channel, g = unit % of_channel / cut.slabs,
                        s = unit % cut.slabs;
            if (p.sums) {
                sum_planes(p, g, s, c);
            } else {
                map_planes(p, g, s, c);
            }
        }
    }

    template <class T>
    void take_rows(const Context& context, const Pass& p, bool back) const {
        const Range mine = context.share(cut.groups() * cut.slabs);
        Buffer memory(context.stream, p.coefficients * row_stride * sizeof(T));
        std::vector<double> sums(p.sums * row_stride);
        T* const table = static_cast<T*>(memory.data());
        for (index begin = 0; begin < cut.width; begin += row_tile) {
            const index length = std::min(row_tile, cut.width - begin);
            index prepared = -1;
            for (index u = 0; u < mine.size(); ++u) {
                const index unit = back ? mine.end - 1 - u : mine.begin + u;
                const index g = unit / cut.slabs, s = unit % cut.slabs;
                if (cut.slab_count(g, s) == 0) continue;
                if (g != prepared && p.prepare) prepare_table(p, g, begin, length, table);
                prepared = g;
                Runs wide = cut.wide_part(g, s), rest = cut.rest(g, s);
                wide.length = length;
                for (Runs* runs : {&wide, &rest}) {
                    runs->begin += begin;
                    runs->gate += begin / 8;
                }
                if (p.sums) {
                    sum_rows(p, g, s, begin, wide, rest, table, sums.data());
                } else {
                    if (wide.count) map_isa(p.sweep, wide, nullptr, table);
                    if (rest.count) map_isa(p.sweep, rest, nullptr, table);
                }
            }
        }
    }

    template <class T>
    void prepare_table(const Pass& p, index g, index begin, index length, T* table) const {
        const index channels = cut.shape.channels;
        double one[most_coefficients];
        const index own = std::min(length, channels);
        for (index i = 0; i < own; ++i) {
            p.prepare(g, begin + i, one);
            for (int k = 0; k < p.coefficients; ++k) table[k * row_stride + i] = T(one[k]);
        }
        for (int k = 0; k < p.coefficients; ++k) {
            T* const row = table + k * row_stride;
            for (index i = own; i < length; ++i) row[i] = row[i - own];
        }
    }

    // Sums of wide rows, folded onto their channels.
    void sum_rows(const Pass& p, index g, index s, index begin, const Runs& wide, const Runs& rest,
                  const void* table, double* sums) const {
        const index channels = cut.shape.channels;
        const index n = std::min(wide.length, channels);
        const bool moments = p.sweep.work == Work::moments;
        if (wide.count) {
            sum_isa(p.sweep, wide, nullptr, table, sums);
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
        sum_isa(p.sweep, rest, nullptr, table, sums);
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

    void fold_moments(const Pass& p, index g, index s, index begin, index n, const Runs& wide,
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

    void merge_moments(const Pass& p, index g, index s, double n, double more,
                       const double* sums) const {
        double* const mean = at(p, g, s, 0);
        double* const square = at(p, g, s, 1);
        for (index c = 0; c < cut.shape.channels; ++c) {
            const double d = sums[c] - mean[c];
            mean[c] += d * (more / (n + more));
            square[c] += sums[row_stride + c] + d * d * (n * more / (n + more));
        }
    }

    std::vector<Pass> passes_;
};

// The numbers of a channel that every pass starts from.
struct Channel {
    double mean, r, alpha, beta, gamma, delta, weight, bias, scale, offset;
    double rounded, low;  // the mean as elements see it, and what is left of it, times -r
};

class Channels {
   public:
    explicit Channels(const Layer& layer) : layer_(layer) {
        const index n = layer.shape.channels;
        weight_.resize(n);
        bias_.resize(n);
        for (index c = 0; c < n; ++c) {
            weight_[c] = layer.weight.get(c, 1.0);
            bias_[c] = layer.bias.get(c, 0.0);
        }
    }

    double& table(Table t, index g, index c) const {
        const Shape& s = layer_.shape;
        return layer_.statistics[(index(t) * s.groups() + g) * s.channels + c];
    }

    Channel operator()(index g, index c) const {
        Channel k{};
        k.mean = table(Mean, g, c);
        k.r = table(InverseDeviation, g, c);
        k.alpha = k.gamma = 1.0;
        if (layer_.all_tables) {
            k.alpha = table(Alpha, g, c);
            k.beta = table(Beta, g, c);
            k.gamma = table(Gamma, g, c);
            k.delta = table(Delta, g, c);
        }
        k.weight = weight_[c];
        k.bias = bias_[c];
        k.rounded = layer_.shape.dtype == Dtype::f64 ? k.mean : double(float(k.mean));
        const bool finite = std::isfinite(k.rounded);
        k.low = finite ? (k.rounded - k.mean) * k.r : 0.0;
        k.scale = k.weight * k.alpha * k.r;
        k.offset = k.weight * k.beta + k.bias * k.gamma + k.delta + k.weight * k.alpha * k.low;
        return k;
    }

   private:
    const Layer& layer_;
    std::vector<double> weight_, bias_;
};

void argument_coefficients(const Channel& k, double* out) {
    out[MEAN] = k.rounded;
    out[SCALE] = k.scale;
    out[OFFSET] = k.offset;
}
void normalized_coefficients(const Channel& k, double* out) {
    out[R] = k.r;
    out[LOW] = k.low;
}

Sweep sweep_of(const Layer& layer, Work work) {
    Sweep s{};
    s.work = work;
    s.activation = layer.activation;
    s.dtype = layer.shape.dtype;
    s.setting = {layer.slope, layer.gate != nullptr};
    s.in[X] = layer.x;
    s.in[RES] = layer.gate ? nullptr : layer.residual;
    s.gate = layer.gate;
    return s;
}

bool streams(const Shape& s) { return s.size() * bytes_of(s.dtype) >= streamed_from; }

double uniform(std::uint32_t bits) { return (double(bits) + 0.5) * (1.0 / 4294967296.0); }

void settle_statistics(const Layer& layer, const Origin& how, const Channels& channels, index g,
                       index c, double count, double mean, double square) {
    const double raw = square / count;
    const double variance = raw;
    const double r = 1.0 / std::sqrt(variance + how.eps);
    channels.table(Mean, g, c) = mean;
    channels.table(InverseDeviation, g, c) = r;
    if (layer.all_tables) {
        double alpha = 1.0, beta = 0.0, gamma = 1.0, delta = 0.0;
        if (how.r_max > 0.0) {
            const double deviation = std::sqrt(how.running_variance.get(c, 1.0) + how.eps);
            const double ratio = 1.0 / (r * deviation);
            const double shift = (mean - how.running_mean.get(c, 0.0)) / deviation;
            alpha = std::min(std::max(ratio, 1.0 / how.r_max), how.r_max);
            beta = std::min(std::max(shift, -how.d_max), how.d_max);
        }
        if (how.noise_scale > 0.0) {
            const Philox bits = philox({{std::uint32_t(c), std::uint32_t(std::uint64_t(c) >> 32),
                                         std::uint32_t(how.step), std::uint32_t(how.step >> 32)}},
                                       how.seed);
            gamma = 1.0 + (how.noise_scale - 1.0) * uniform(bits.word[0]);
            delta = how.noise_mean * (2.0 * uniform(bits.word[1]) - 1.0);
            alpha *= gamma;
            beta *= gamma;
        }
        channels.table(Alpha, g, c) = alpha;
        channels.table(Beta, g, c) = beta;
        channels.table(Gamma, g, c) = gamma;
        channels.table(Delta, g, c) = delta;
    }
    if (how.running_mean.data) {
        const double m = how.momentum < 0.0 ? 1.0 / (how.seen + double(g) + 1.0) : how.momentum;
        const double old_mean = how.running_mean.get(c, 0.0);
        const double old_variance = how.running_variance.get(c, 1.0);
        how.running_mean.set(c, (1.0 - m) * old_mean + m * mean);
        how.running_variance.set(c, (1.0 - m) * old_variance + m * (square / (count - 1.0)));
    }
}

Pass moments_pass(const Shape& shape, const void* x) {
    Pass p;
    p.sweep.work = Work::moments;
    p.sweep.dtype = shape.dtype;
    p.sweep.in[X] = x;
    p.coefficients = 1;
    p.sums = 2;
    return p;
}

double weight_of(const Parts& parts, const Cut& cut, index g) {
    return parts.weighs < 0.0 ? 1.0 / double(cut.count_of(g)) : parts.weighs;
}

// Sums of a derivative, (number, groups, channels).
class Sums {
   public:
    Sums(const Parts& parts, const Shape& shape, int number)
        : groups_(shape.groups()), channels_(shape.channels), data_(parts.sums) {
        if (data_ == nullptr) {
            own_.resize(number * groups_ * channels_);
            data_ = own_.data();
        }
    }
    double* at(int k, index g) const { return data_ + (k * groups_ + g) * channels_; }
    double get(int k, index g, index c) const { return at(k, g)[c]; }

   private:
    index groups_, channels_;
    std::vector<double> own_;
    double* data_;
};

}  // namespace

double Values::get(index c, double otherwise) const {
    if (data == nullptr) return otherwise;
    switch (dtype) {
        case Dtype::f32: return double(static_cast<const float*>(data)[c]);
        case Dtype::f64: return static_cast<const double*>(data)[c];
        case Dtype::bf16: return double(widen(static_cast<const bfloat16*>(data)[c]));
        default: return double(widen(static_cast<const float16*>(data)[c]));
    }
}

void Values::set(index c, double value) const {
    if (data == nullptr) return;
    switch (dtype) {
        case Dtype::f32: static_cast<float*>(data)[c] = float(value); break;
        case Dtype::f64: static_cast<double*>(data)[c] = value; break;
        case Dtype::bf16: static_cast<bfloat16*>(data)[c] = rounded<bfloat16>(float(value)); break;
        default: static_cast<float16*>(data)[c] = rounded<float16>(float(value));
    }
}

index gate_bytes(const Shape& shape) {
    const Cut cut(shape);
    if (cut.rows) return cut.groups() * cut.group_bits();
    return shape.outer * shape.channels * bits_of_run(shape.inner);
}

void forward(const Stream& stream, const Layer& layer, const Origin& how, void* y,
             std::uint8_t* new_gate) {
    const Shape& shape = layer.shape;
    Runner runner(stream, shape);
    const Channels channels(layer);
    Pass sums = moments_pass(shape, layer.x);
    if (how.source == Origin::batch && shape.size() > 0) {
        sums.finish = [&](Range range) {
            std::vector<double> mean(range.size()), square(range.size());
            for (index g = 0; g < runner.cut.groups(); ++g) {
                runner.total_moments(g, range, mean.data(), square.data());
                const double count = double(runner.cut.count_of(g));
                for (index c = range.begin; c < range.end; ++c) {
                    settle_statistics(layer, how, channels, g, c, count, mean[c - range.begin],
                                      square[c - range.begin]);
                }
            }
        };
        runner.add(sums);
    } else if (how.source != Origin::given) {
        for (index g = 0; g < shape.groups(); ++g) {
            for (index c = 0; c < shape.channels; ++c) {
                channels.table(Mean, g, c) = how.running_mean.get(c, 0.0);
                channels.table(InverseDeviation, g, c) =
                    1.0 / std::sqrt(how.running_variance.get(c, 1.0) + how.eps);
                if (!layer.all_tables) continue;
                channels.table(Alpha, g, c) = channels.table(Gamma, g, c) = 1.0;
                channels.table(Beta, g, c) = channels.table(Delta, g, c) = 0.0;
            }
        }
    }
    if (shape.size() == 0) return;
    Pass map;
    map.sweep = sweep_of(layer, Work::forward);
    map.sweep.in[RES] = layer.residual;
    map.sweep.out[0] = y;
    map.sweep.new_gate = new_gate;
    map.sweep.stream = streams(shape);
    map.coefficients = own;
    map.prepare = [&](index g, index c, double* out) {
        argument_coefficients(channels(g, c), out);
    };
    runner.add(map);
    runner.go();
}

void moments(const Stream& stream, const Shape& shape, const void* x, double* out) {
    std::fill_n(out, 2 * shape.channels, 0.0);
    if (shape.size() == 0) return;
    Runner runner(stream, shape);
    Pass sums = moments_pass(shape, x);
    sums.finish = [&](Range range) {
        runner.total_moments(0, range, out + range.begin, out + shape.channels + range.begin);
    };
    runner.add(sums);
    runner.go();
}

void backward(const Stream& stream, const Layer& layer, const Parts& parts, const void* dy,
              void* dx, void* dresidual, const Values& dweight, const Values& dbias) {
    const Shape& shape = layer.shape;
    Runner runner(stream, shape);
    const Channels channels(layer);
    const Sums total(parts, shape, backward_sums);
    Pass sums;
    sums.sweep = sweep_of(layer, Work::backward_sums);
    sums.sweep.in[DY] = dy;
    sums.coefficients = LOW + 1;
    sums.sums = backward_sums;
    sums.prepare = [&](index g, index c, double* out) {
        const Channel k = channels(g, c);
        argument_coefficients(k, out);
        normalized_coefficients(k, out);
    };
    const auto finish = [&](Range range) {
        for (index g = 0; g < shape.groups(); ++g) {
            for (int k = 0; k < backward_sums && shape.size() > 0; ++k) {
                runner.total(0, g, k, range, total.at(k, g) + range.begin);
            }
        }
        for (index c = range.begin; c < range.end; ++c) {
            double dw = 0.0, db = 0.0;
            for (index g = 0; g < shape.groups(); ++g) {
                const Channel k = channels(g, c);
                dw += k.alpha * total.get(1, g, c) + k.beta * total.get(0, g, c);
                db += k.gamma * total.get(0, g, c);
            }
            dweight.set(c, dw);
            dbias.set(c, db);
        }
    };
    sums.finish = finish;
    if (shape.size() == 0) {
        if (parts.sum) {
            std::fill_n(total.at(0, 0), backward_sums * shape.groups() * shape.channels, 0.0);
            finish({0, shape.channels});
        }
        return;
    }
    if (parts.sum) runner.add(sums);
    Pass map;
    map.sweep = sweep_of(layer, Work::backward);
    map.sweep.in[DY] = dy;
    map.sweep.out[0] = dx;
    map.sweep.out[1] = dresidual;
    map.sweep.stream = streams(shape);
    map.coefficients = own + 3;
    map.prepare = [&](index g, index c, double* out) {
        const Channel k = channels(g, c);
        const double weighs = weight_of(parts, runner.cut, g);
        const double m1 = weighs * total.get(0, g, c), m2 = weighs * total.get(1, g, c);
        argument_coefficients(k, out);
        out[own] = k.scale;
        out[own + 1] = -k.scale * k.r * m2;
        out[own + 2] = -k.scale * (m1 + k.low * m2);
    };
    if (parts.apply && dx) runner.add(map);
    runner.go();
}

namespace {

// Of z' = c x' + c (x - mean) + c + residual'.
struct DirectionOf {
    const Channels& channels;
    const Direction& along;
    double weight(index c) const { return along.weight.get(c, 0.0); }
    double bias(index c) const { return along.bias.get(c, 0.0); }

    // x1 and x2 are mean(x') and mean(x' h); returns what h is multiplied by.
    double coefficients(const Channel& k, index c, double x1, double x2, double* out) const {
        const double times_h = weight(c) * k.alpha - k.scale * x2;
        out[0] = k.scale;
        out[1] = k.r * times_h;
        out[2] = weight(c) * k.beta + k.gamma * bias(c) - k.scale * x1 + k.low * times_h;
        return times_h;
    }
};

}  // namespace

void tangent(const Stream& stream, const Layer& layer, const Parts& parts, const Direction& along,
             void* yt) {
    const Shape& shape = layer.shape;
    Runner runner(stream, shape);
    const Channels channels(layer);
    const DirectionOf direction{channels, along};
    const Sums total(parts, shape, tangent_sums);
    if (shape.size() == 0) {
        if (parts.sum) {
            std::fill_n(total.at(0, 0), tangent_sums * shape.groups() * shape.channels, 0.0);
        }
        return;
    }
    Pass sums;
    sums.sweep = sweep_of(layer, Work::tangent_sums);
    sums.sweep.in[XT] = along.x;
    sums.sweep.in[RES] = nullptr;
    sums.coefficients = LOW + 1;
    sums.sums = tangent_sums;
    sums.prepare = [&](index g, index c, double* out) {
        const Channel k = channels(g, c);
        argument_coefficients(k, out);
        normalized_coefficients(k, out);
    };
    sums.finish = [&](Range range) {
        for (index g = 0; g < shape.groups(); ++g) {
            for (int k = 0; k < tangent_sums; ++k) {
                runner.total(0, g, k, range, total.at(k, g) + range.begin);
            }
        }
    };
    const bool needed = parts.weighs != 0.0 || !parts.apply;
    if (parts.sum && needed) runner.add(sums);
    Pass map;
    map.sweep = sweep_of(layer, Work::tangent);
    map.sweep.in[XT] = along.x;
    map.sweep.in[REST] = along.residual;
    map.sweep.out[0] = yt;
    map.sweep.stream = streams(shape);
    map.coefficients = own + 3;
    map.prepare = [&](index g, index c, double* out) {
        const Channel k = channels(g, c);
        const double weighs = weight_of(parts, runner.cut, g);
        argument_coefficients(k, out);
        direction.coefficients(k, c, weighs == 0.0 ? 0.0 : weighs * total.get(0, g, c),
                               weighs == 0.0 ? 0.0 : weighs * total.get(1, g, c), out + own);
    };
    if (parts.apply) runner.add(map);
    runner.go();
}

void second(const Stream& stream, const Layer& layer, const Parts& parts, const Direction& along,
            const void* dy, const void* dyt, void* dxt, void* dresidual_t, void* yt,
            const Values& dweight_t, const Values& dbias_t) {
    const Shape& shape = layer.shape;
    Runner runner(stream, shape);
    const Channels channels(layer);
    const DirectionOf direction{channels, along};
    const Sums total(parts, shape, second_sums);
    enum { X1, X2, S1, S2, S3, S4, S5 };
    const bool piecewise = piecewise_linear(layer.activation);
    const int first_sums = piecewise ? 7 : 5;

    const auto means = [&](index g, index c, double& x1, double& x2) {
        const double weighs = weight_of(parts, runner.cut, g);
        x1 = weighs * total.get(X1, g, c);
        x2 = weighs * total.get(X2, g, c);
    };
    // sum (h dz)'
    const auto product = [&](const Channel& k, index g, index c) {
        double x1, x2;
        means(g, c, x1, x2);
        return total.get(S5, g, c) +
               k.r * (total.get(S3, g, c) - x1 * total.get(S1, g, c) - x2 * total.get(S2, g, c));
    };
    const auto finish_weights = [&](Range range) {
        for (index c = range.begin; c < range.end; ++c) {
            double dw = 0.0, db = 0.0;
            for (index g = 0; g < shape.groups(); ++g) {
                const Channel k = channels(g, c);
                dw += k.alpha * product(k, g, c) + k.beta * total.get(S4, g, c);
                db += k.gamma * total.get(S4, g, c);
            }
            dweight_t.set(c, dw);
            dbias_t.set(c, db);
        }
    };
    if (shape.size() == 0) {
        if (parts.sum) {
            std::fill_n(total.at(0, 0), second_sums * shape.groups() * shape.channels, 0.0);
            finish_weights({0, shape.channels});
        }
        return;
    }

    Pass sums;
    sums.sweep = sweep_of(layer, Work::second_sums);
    sums.sweep.in[DY] = dy;
    sums.sweep.in[XT] = along.x;
    sums.sweep.in[DYT] = piecewise ? dyt : nullptr;
    sums.coefficients = LOW + 1;
    sums.sums = first_sums;
    sums.prepare = [&](index g, index c, double* out) {
        const Channel k = channels(g, c);
        argument_coefficients(k, out);
        normalized_coefficients(k, out);
    };
    sums.finish = [&](Range range) {
        for (index g = 0; g < shape.groups(); ++g) {
            for (int k = 0; k < second_sums; ++k) {
                double* const to = total.at(k, g) + range.begin;
                if (k < first_sums) {
                    runner.total(0, g, k, range, to);
                } else {
                    std::fill_n(to, range.size(), 0.0);
                }
            }
        }
        if (piecewise) finish_weights(range);
    };

    Pass more;
    more.sweep = sweep_of(layer, Work::more_second_sums);
    more.sweep.in[DY] = dy;
    more.sweep.in[DYT] = dyt;
    more.sweep.in[XT] = along.x;
    more.sweep.in[REST] = along.residual;
    more.coefficients = LOW + 4;
    more.sums = 2;
    more.prepare = [&](index g, index c, double* out) {
        const Channel k = channels(g, c);
        double x1, x2;
        means(g, c, x1, x2);
        argument_coefficients(k, out);
        normalized_coefficients(k, out);
        direction.coefficients(k, c, x1, x2, out + LOW + 1);
    };
    more.finish = [&](Range range) {
        for (index g = 0; g < shape.groups(); ++g) {
            for (int k = 0; k < 2; ++k) {
                runner.total(parts.sum ? 1 : 0, g, k, range, total.at(S4 + k, g) + range.begin);
            }
        }
        finish_weights(range);
    };

    Pass map;
    map.sweep = sweep_of(layer, Work::second);
    map.sweep.in[DY] = dy;
    map.sweep.in[DYT] = dyt;
    map.sweep.in[XT] = along.x;
    map.sweep.in[REST] = along.residual;
    map.sweep.out[0] = dxt;
    map.sweep.out[1] = dresidual_t;
    map.sweep.out[2] = yt;
    map.sweep.stream = streams(shape);
    map.coefficients = own + 8;
    map.prepare = [&](index g, index c, double* out) {
        const Channel k = channels(g, c);
        const double weighs = weight_of(parts, runner.cut, g);
        double x1, x2;
        means(g, c, x1, x2);
        argument_coefficients(k, out);
        const double scale_t = k.r * direction.coefficients(k, c, x1, x2, out + own);
        const double m1 = weighs * total.get(S1, g, c), m2 = weighs * total.get(S2, g, c);
        const double m1t = weighs * total.get(S4, g, c), m2t = weighs * product(k, g, c);
        const double d = k.scale;
        const double times_h = -scale_t * m2 + d * k.r * x2 * m2 - d * m2t;
        double* const e = out + own + 3;
        e[0] = scale_t;
        e[1] = d;
        e[2] = -d * k.r * m2;
        e[3] = k.r * times_h;
        e[4] = k.low * times_h - scale_t * m1 - d * m1t + d * k.r * x1 * m2;
    };
    if (parts.sum) runner.add(sums);
    if (parts.more && !piecewise) runner.add(more);
    if (parts.apply) runner.add(map);
    runner.go();
}

}  // namespace normalization

SP_END
