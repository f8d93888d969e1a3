#include "optim/layout.hpp"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <numeric>

SP_BEGIN

namespace {

using Axes = std::vector<std::size_t>;

index product(const std::vector<index>& shape) {
    return std::accumulate(shape.begin(), shape.end(), index(1), std::multiplies<>());
}

// All axes, outermost first.
Axes in_order(const std::vector<index>& strides, bool c_order) {
    Axes order(strides.size());
    std::iota(order.begin(), order.end(), std::size_t(0));
    if (!c_order) {
        std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
            return std::abs(strides[a]) > std::abs(strides[b]);
        });
    }
    return order;
}

}  // namespace

std::vector<index> dense_strides(const std::vector<index>& shape, const std::vector<index>& strides,
                                 bool c_order) {
    const Axes order = in_order(strides, c_order);
    std::vector<index> result(shape.size());
    index stride = 1;
    for (std::size_t k = order.size(); k-- > 0;) {
        result[order[k]] = stride;
        stride *= shape[order[k]];
    }
    return result;
}

void Layout::lay_out(const Placements& arrays, Tensor& t) {
    std::vector<std::pair<const Placement*, Strided*>> all{{&arrays.p, &t.p},
                                                           {&arrays.gradient, &t.gradient},
                                                           {&arrays.ema, &t.ema},
                                                           {&arrays.copy, &t.copy},
                                                           {&arrays.remainder, &t.remainder}};
    for (std::size_t k = 0; k < arrays.states.size(); ++k) {
        all.emplace_back(&arrays.states[k], &t.state[k]);
    }
    const std::vector<index>& shape = *arrays.p.shape;
    t.size = product(shape);
    const std::vector<index> c_strides = dense_strides(shape, *arrays.p.strides, true);
    const auto whole = [&](const Placement& a) { return a.data && *a.shape == shape; };

    // An axis joins the one outside it where every array steps over both as over one.
    std::vector<Axes> merged;
    for (std::size_t a : in_order(*arrays.p.strides, arrays.matrix)) {
        if (shape[a] == 1) continue;
        const auto as_one = [&](const std::vector<index>& strides) {
            return strides[merged.back().back()] == strides[a] * shape[a];
        };
        const bool joins = !merged.empty() && as_one(c_strides) &&
                           std::all_of(all.begin(), all.end(), [&](const auto& array) {
                               return !whole(*array.first) || as_one(*array.first->strides);
                           });
        if (!joins) merged.emplace_back();
        merged.back().push_back(a);
    }
    extents_.clear();
    for (const Axes& axis : merged) {
        index extent = 1;
        for (std::size_t a : axis) extent *= shape[a];
        extents_.push_back(extent);
    }
    if (extents_.empty()) extents_.push_back(1);
    t.axes = int(extents_.size());
    t.extents = extents_.data();

    // Strides of the merged axes; null where the elements follow each other as they are numbered.
    const auto merged_strides = [&](const std::vector<index>& s, std::vector<index>& out) {
        out.clear();
        for (const Axes& axis : merged) out.push_back(s[axis.back()]);
        if (out.empty()) out.push_back(1);
        index dense = 1;
        bool is_dense = true;
        for (std::size_t a = extents_.size(); a-- > 0;) {
            is_dense = is_dense && out[a] == dense;
            dense *= extents_[a];
        }
        return is_dense || t.size == 0 ? nullptr : out.data();
    };
    t.logical = merged_strides(c_strides, logical_);
    for (std::size_t k = 0; k < all.size(); ++k) {
        const Placement& array = *all[k].first;
        *all[k].second = {array.data,
                          whole(array) ? merged_strides(*array.strides, strides_[k]) : nullptr,
                          array.dtype};
    }
    if (arrays.matrix) {
        const std::size_t d = shape.size();
        t.rows = d > 1 ? shape[d - 2] : 1;
        t.columns = d > 0 ? shape[d - 1] : 1;
        t.batch = t.size == 0 ? 0 : t.size / (t.rows * t.columns);
    }
}

SP_END
