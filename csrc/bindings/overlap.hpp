// The one check that what is written lies in memory of its own.
#pragma once

#include "bindings/view.hpp"

SP_BEGIN

// Arrays that a call writes and reads, which must outlive this.
class Overlaps {
   public:
    Overlaps() { spans_.reserve(16); }
    void clear() { spans_.clear(); }
    Overlaps& writes(const View& view, const char* name) { return add(view, name, true); }
    Overlaps& reads(const View& view, const char* name) { return add(view, name, false); }

    // Raises ValueError where elements of a written array are another array's too. `in_place`: it
    // may be all of one that is read.
    void check(bool in_place = false);
    // The same for one more that is read, and whether no written array begins or ends within a
    // range of addresses; both after `check`.
    void check_read(const View& view, const char* name) const;
    bool clear_of(const char* begin, const char* end) const;

   private:
    struct Span {
        const char *begin, *end, *name;
        const View* view;
        bool written;
        std::size_t number;  // in order of coming
    };
    Overlaps& add(const View& view, const char* name, bool written);
    static void refuse(const Span& a, const Span& b);
    std::size_t first_after(const char* address) const;

    std::vector<Span> spans_;        // in order of address once checked
    std::vector<const char*> ends_;  // theirs, close together for the search
    bool nested_ = false;            // ranges meet, though no elements do
};

SP_END
