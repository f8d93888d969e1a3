// The stream that a call works on.
#pragma once

#include "bindings/view.hpp"

SP_BEGIN

// That of the arrays' library where it tells one, else our own; where arrays are of both, each
// waits for the other.
class Streams {
   public:
    View look(const py::handle& object, const char* name) {
        View view = peek(object, name, device_type() != dlpack::cpu);
        if (!view.exchange) {
            ours_ = true;  // what came through a capsule is in order with our own stream
        } else if (device_type() != dlpack::cpu && !foreign_) {
            void* theirs = nullptr;
            if (view.exchange->current_stream(device_type(), 0, &theirs) != 0) {
                throw py::error_already_set();
            }
            stream_ = foreign_stream(reinterpret_cast<std::uintptr_t>(theirs));
            foreign_ = true;
        }
        return view;
    }

    const Stream& stream() const { return stream_; }

    // Without the lock of Python.
    template <class F>
    void go(F&& f) const {
        const py::gil_scoped_release release;
        const bool mixed = foreign_ && ours_;
        if (mixed) stream_.wait_for(current_stream());
        f(stream_);
        if (mixed) current_stream().wait_for(stream_);
    }

    // What gives a number, and so waits for it: on our own stream, whose scratch is our thread's.
    template <class F>
    double ask(F&& f) const {
        const py::gil_scoped_release release;
        const Stream ours = current_stream();
        if (foreign_) ours.wait_for(stream_);
        return f(ours);
    }

   private:
    Stream stream_ = current_stream();
    bool foreign_ = false, ours_ = false;  // whether arrays are of other streams, and of our own
};

SP_END
