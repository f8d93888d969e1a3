#include "ops/gather.hpp"

#include "core/gpu.hpp"

SP_BEGIN

namespace {

constexpr int threads = 256;

// Neighbouring threads copy neighbouring words of a row; a block takes as many rows as it has room
// for.
template <class Word>
__global__ void __launch_bounds__(threads)
    gather_kernel(const index rows, const index words, const Word* const from,
                  const std::int64_t* const indices, Word* const to) {
    const index step = index(gridDim.x) * blockDim.y;
    for (index row = index(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += step) {
        const Word* const source = from + indices[row] * words;
        Word* const target = to + row * words;
        for (index i = threadIdx.x; i < words; i += blockDim.x) target[i] = source[i];
    }
}

template <class Word>
void gather(const Stream& stream, index rows, index bytes, const void* from,
            const std::int64_t* indices, void* to) {
    const index words = bytes / index(sizeof(Word));
    unsigned across = 1;
    while (across < threads && across < words) across *= 2;
    const dim3 shape(across, threads / across);
    gather_kernel<<<grid(stream, rows, shape.y), shape, 0, native(stream).stream>>>(
        rows, words, static_cast<const Word*>(from), indices, static_cast<Word*>(to));
    check(cudaGetLastError(), "gather_rows");
}

}  // namespace

void gather_rows(const Context& context, index rows, index bytes, const void* from,
                 const std::int64_t* indices, void* to) {
    if (rows == 0 || bytes == 0) return;
    const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
    const bool wide = (address(from) | address(to) | std::uintptr_t(bytes)) % sizeof(uint4) == 0;
    (wide ? gather<uint4> : gather<std::uint32_t>)(context.stream, rows, bytes, from, indices, to);
}

SP_END
