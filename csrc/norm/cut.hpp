// How a tensor is cut into the slabs that sums are taken over, and where the bits of a gate lie.
#pragma once

#include <algorithm>

#include "norm/fused.hpp"

SP_BEGIN

namespace normalization {

// Elements of a slab, over which sums are taken before they are combined: of a channel, and of the
// rows of all channels. A function of the shape alone, so sums have the same bits on any team.
constexpr index channel_slab = 32768, row_slab = 131072, least_rows = 256, most_slabs = 64;

SP_HD index up(index n, index unit) { return (n + unit - 1) / unit; }
constexpr index divisor(index a, index b) { return b == 0 ? a : divisor(b, a % b); }
SP_HD index bits_of_run(index n) { return 2 * up(n, 16); }  // bytes, of whole packs

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

    // Elements of each channel in a slab; 0 past the end of the last group.
    index slab_count(index g, index s) const {
        if (cuts > 1) {
            if (s / cuts >= shape.outer_of(g)) return 0;
            return std::min(channel_slab, shape.inner - s % cuts * channel_slab);
        }
        return std::clamp<index>(shape.outer_of(g) - s * each, 0, each) * shape.inner;
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
                g * bits_of_rows(group) + s * each / wide * bits,
                bits};
    }
    Runs rest(index g, index s) const {
        const index n = slab_count(g, s), done = n / wide * wide, bits = bits_of_run(width);
        return {n - done,
                shape.channels,
                shape.channels,
                (g * group + s * each + done) * shape.channels,
                g * bits_of_rows(group) + (s * each + done) / wide * bits,
                bits_of_run(shape.channels)};
    }
    // Bytes of the gate's bits: of n rows, and of all.
    index bits_of_rows(index n) const {
        return n / wide * bits_of_run(width) + n % wide * bits_of_run(shape.channels);
    }
    index gate_bytes() const {
        if (!rows) return shape.outer * shape.channels * bits_of_run(shape.inner);
        const index last = groups() - 1;
        return last * bits_of_rows(group) + bits_of_rows(shape.outer_of(last));
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

}  // namespace normalization

SP_END
