// Work that a stream is given again and again, then by one call: on CUDA a graph. On a CPU a call
// costs nothing, and nothing is recorded.
#pragma once

#include <functional>
#include <optional>

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

// The recording of what was last asked for twice in a row. A key says all that it depends on, but
// for the numbers in memory.
template <class Key>
class Repeated {
   public:
    bool again(const Key& key) {
        const bool same = last_ == key;
        last_ = key;
        return same;
    }
    bool has(const Key& key) const { return recorded_ == key; }
    // False where it cannot be recorded: then nothing has been done.
    bool replay(const Stream& stream, const Key& key,
                const std::function<void(const Stream&)>& work) {
        if (!has(key)) {
            recording_.record(stream, work);
            recorded_ = key;
        }
        if (recording_) recording_.replay(stream);
        return bool(recording_);
    }
    void forget() {
        recording_.clear();
        last_.reset(), recorded_.reset();
    }

   private:
    std::optional<Key> last_, recorded_;
    Recording recording_;
};

SP_END
