// Where work runs, and how it is shared out.
//
// `run` calls a function once on each member of a team, and all of them run the same code: on the
// CPU the members are threads, on CUDA there is one member whose calls are queued on a stream.
// Every operation works on the rows that its member owns, so operations that stay within a row
// follow each other without a barrier; what crosses rows calls `sync` first. Rows are owned in
// slabs whose borders are a function of the size alone, so results do not depend on the number of
// threads.
#pragma once

#include "core/config.hpp"

SP_BEGIN

struct Range {
    index begin, end;
    index size() const { return end - begin; }
};

struct Stream {
    void* native = nullptr;  // CPU: unused. CUDA: the stream and its cuBLAS handle
    void synchronize() const;
    // What this one is given from now on comes after what `other` has been given so far.
    void wait_for(const Stream& other) const;
};

// The slabs of a number of rows.
struct Slabs {
    index rows, each, count;
    Range operator[](index i) const {
        const index end = (i + 1) * each;
        return {i * each, end < rows ? end : rows};
    }
};
Slabs slabs(index rows);

class Team;  // CPU: where its members meet

struct Context {
    int rank = 0, size = 1;
    Stream stream;
    index only = -1;  // at least 0: this slab alone, of those that the member owns
    Team* team = nullptr;

    // Waits for all members. Where one of them has thrown, nobody comes back from here.
    void sync() const;
    // The part of `count` equal units that this member owns.
    Range share(index count) const { return {count * rank / size, count * (rank + 1) / size}; }
    Range owned(const Slabs& all) const {
        return only >= 0 ? Range{only, only + 1} : share(all.count);
    }
};

// In how many column blocks a matrix product that sums over rows is cut.
index column_blocks(index columns);

template <class F>
void for_owned_slabs(const Context& context, index rows, F&& f) {
    const Slabs all = slabs(rows);
    const Range mine = context.owned(all);
    for (index i = mine.begin; i < mine.end; ++i) f(i, all[i]);
}

// Takes the owned slabs through all of f one by one, each while it is in cache. For operations that
// stay within a row.
template <class F>
void slab_by_slab(const Context& context, index rows, F&& f) {
    Context alone = context;
    for_owned_slabs(context, rows, [&](index i, Range) {
        alone.only = i;
        f(alone);
    });
}

// What work takes on one thread, in nanoseconds and roughly.
namespace cost {
constexpr double multiply_add = 0.02;  // in a product of matrices
constexpr double element = 0.5;        // read and written in a pass
constexpr double update = 1.5;         // of a parameter with its states
}  // namespace cost

// What members are to do: a reference to a function, which to pass on allocates nothing.
class Work {
   public:
    template <class F>
    Work(const F& f)
        : f_(&f), call_([](const void* g, const Context& c) { (*static_cast<const F*>(g))(c); }) {}
    void operator()(const Context& context) const { call_(f_, context); }

   private:
    const void* f_;
    void (*call_)(const void*, const Context&);
};

// Little work is not worth a team. What a member throws comes out of here, once all have stopped.
void run(const Stream& stream, double nanoseconds, const Work& work);

SP_END
