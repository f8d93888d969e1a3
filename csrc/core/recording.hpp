// Work that a stream is given again and again, then by one call: on CUDA a graph. On a CPU a call
// costs nothing, and nothing is recorded.
#pragma once

#include <functional>

#include "core/stream.hpp"

SP_BEGIN

class Recording {
   public:
    Recording() = default;
    ~Recording() { clear(); }
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

    static bool possible(const Stream& stream);
    // What `work` gives the stream that it is called with. The like must have been given to
    // `stream` before, since libraries set themselves up at first. Empty where it cannot be
    // recorded.
    void record(const Stream& stream, const std::function<void(const Stream&)>& work);
    void replay(const Stream& stream) const;
    void clear();
    explicit operator bool() const { return graph_; }

   private:
    void* graph_ = nullptr;
};

SP_END
