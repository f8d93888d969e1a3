#include "bindings/overlap.hpp"

#include <pybind11/numpy.h>

#include <algorithm>

SP_BEGIN

namespace {

py::array as_numpy(const View& v) {
    std::vector<py::ssize_t> strides;
    for (index s : v.strides) strides.push_back(s * v.width());
    const py::capsule base(v.data, [](void*) {});
    return py::array(py::dtype("V" + std::to_string(v.width())),
                     std::vector<py::ssize_t>(v.shape.begin(), v.shape.end()), strides, v.data,
                     base);
}

// Of arrays whose ranges meet.
bool share_elements(const View& a, const View& b) {
    if (a.contiguous() && b.contiguous()) return true;
    return py::cast<bool>(
        py::module_::import("numpy").attr("shares_memory")(as_numpy(a), as_numpy(b)));
}

}  // namespace

Overlaps& Overlaps::add(const View& view, const char* name, bool written) {
    const auto [begin, end] = view.range();
    if (begin != end) spans_.push_back({begin, end, name, &view, written, spans_.size()});
    return *this;
}

void Overlaps::refuse(const Span& a, const Span& b) {
    if (share_elements(*a.view, *b.view)) {
        const Span &written = b.written ? b : a, &other = b.written ? a : b;
        raise_value(written.name, "memory of its own",
                    std::string("an overlap with ") + other.name);
    }
}

void Overlaps::check(bool in_place) {
    std::sort(spans_.begin(), spans_.end(), [](const Span& a, const Span& b) {
        return a.begin != b.begin ? a.begin < b.begin : a.number < b.number;
    });
    nested_ = false;
    ends_.clear();
    ends_.reserve(spans_.size());
    for (const Span& span : spans_) ends_.push_back(span.end);
    for (std::size_t i = 0; i + 1 < spans_.size(); ++i) {
        for (std::size_t j = i + 1; j < spans_.size() && spans_[j].begin < spans_[i].end; ++j) {
            const Span &a = spans_[i], &b = spans_[j];
            nested_ = true;
            const bool all = a.begin == b.begin && a.end == b.end && a.written != b.written;
            if ((a.written || b.written) && !(in_place && all)) refuse(a, b);
        }
    }
}

void Overlaps::check_read(const View& view, const char* name) const {
    const auto [begin, end] = view.range();
    if (begin == end) return;
    const Span read{begin, end, name, &view, false, spans_.size()};
    // Ends are in order only where no range lies within another.
    for (std::size_t at = nested_ ? 0 : first_after(begin); at < spans_.size(); ++at) {
        const Span& span = spans_[at];
        if (span.begin >= end) break;
        if (span.written && span.end > begin) refuse(span, read);
    }
}

bool Overlaps::clear_of(const char* begin, const char* end) const {
    if (nested_) return false;
    const std::size_t at = first_after(begin);
    return at == spans_.size() || spans_[at].begin >= end;
}

std::size_t Overlaps::first_after(const char* address) const {
    return std::upper_bound(ends_.begin(), ends_.end(), address) - ends_.begin();
}

SP_END
