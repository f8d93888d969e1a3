#include "core/recording.hpp"

#include "core/gpu.hpp"

SP_BEGIN

// Not within a recording of somebody else's, which our stream may have been made to join.
bool Recording::possible(const Stream& stream) {
    const DeviceGuard guard;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(native(stream).stream, &status), "cudaStreamIsCapturing");
    return status == cudaStreamCaptureStatusNone;
}

// On a stream that nobody else knows: other threads may wait for ours at any time, and what one of
// them frees would be recorded with it.
void Recording::record(const Stream& stream, const std::function<void(const Stream&)>& work) {
    clear();
    const DeviceGuard guard;
    Native side = native(stream);
    if (cudaStreamCreateWithFlags(&side.stream, cudaStreamNonBlocking) == cudaSuccess) {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t made = nullptr;
        bool whole =
            cudaStreamBeginCapture(side.stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
        if (whole) {
            try {
                work({&side});
            } catch (const DeviceError&) {
                whole = false;  // said again by who does the work instead
            }
            whole = cudaStreamEndCapture(side.stream, &graph) == cudaSuccess && whole;
        }
        if (whole && cudaGraphInstantiate(&made, graph, 0) == cudaSuccess) graph_ = made;
        if (graph) (void)cudaGraphDestroy(graph);
        (void)cudaStreamDestroy(side.stream);
        native(stream).blas_stream.reset();
    }
    (void)cudaGetLastError();
}

void Recording::replay(const Stream& stream) const {
    const DeviceGuard guard;
    check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), native(stream).stream),
          "cudaGraphLaunch");
}

// One that is running yet goes when it has ended. Errors have nowhere to go, as a buffer's.
void Recording::clear() {
    if (graph_ && !forked()) {
        (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_));
        (void)cudaGetLastError();
    }
    graph_ = nullptr;
}

SP_END
