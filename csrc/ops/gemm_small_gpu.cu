#include "ops/gemm_small_gpu.hpp"

#include <cmath>

#include "core/gpu.hpp"

SP_BEGIN

namespace {

// A block of threads makes a square of c, going through the sum by chunks: the next is on its way
// while this one is added. Of a chunk's terms each group of threads adds some, `each` by `each`
// numbers a thread.
constexpr int tile = 32, chunk = 64, threads = 256, each = 4, side = tile / each;
constexpr int groups = threads / (side * side), held = tile * chunk / threads;

// op(a), or the transpose of op(b): strides to the next row, and to the next term of the sum.
template <class T>
struct Factor {
    const T* data;
    index direction, row, term;
};

template <class T>
Factor<T> factor(const Operand<T>& x, bool terms_are_columns) {
    if (terms_are_columns) return {x.data, x.direction, x.row, 1};
    return {x.data, x.direction, 1, x.row};
}

// What a thread reads of a factor's chunks: some of them, `by` elements apart, so that neighbouring
// threads read neighbours in memory.
template <class T>
class Reader {
   public:
    __device__ Reader(const Factor<T>& x, index first, index rows, index terms)
        : rows_(int(rows - first < tile ? rows - first : tile)), terms_(terms) {
        const int i = int(threadIdx.x);
        const bool along = x.term == 1;
        row_ = along ? i / chunk : i % tile;
        term_ = along ? i % chunk : i / tile;
        rows_by_ = along ? threads / chunk : 0;
        terms_by_ = along ? 0 : threads / tile;
        at_ = x.data + blockIdx.z * x.direction + (first + row_) * x.row + term_ * x.term;
        by_ = rows_by_ * x.row + terms_by_ * x.term;
        next_ = chunk * x.term;
    }
    __device__ __forceinline__ void fetch() {
#pragma unroll
        for (int i = 0; i < held; ++i) {
            const bool inside = row_ + i * rows_by_ < rows_ && term_ + i * terms_by_ < terms_;
            held_[i] = inside ? at_[i * by_] : T(0);
        }
        at_ += next_;
        terms_ -= chunk;
    }
    __device__ __forceinline__ void put(T (&shared)[chunk][tile + 1]) const {
#pragma unroll
        for (int i = 0; i < held; ++i) {
            shared[term_ + i * terms_by_][row_ + i * rows_by_] = held_[i];
        }
    }

   private:
    int rows_, row_, term_, rows_by_, terms_by_;
    const T* at_;
    index terms_, by_, next_;  // terms that are left
    T held_[held];
};

template <class T>
__global__ void __launch_bounds__(threads)
    small_kernel(const index m, const index n, const index k, const Factor<T> a, const Factor<T> b,
                 const T beta, const Operand<T> c) {
    __shared__ T shared[2][chunk][tile + 1];
    const index top = index(blockIdx.y) * tile, left = index(blockIdx.x) * tile;
    const int x = threadIdx.x % side, y = threadIdx.x / side % side;
    const int group = threadIdx.x / (side * side);
    Reader<T> of_a(a, top, m, k), of_b(b, left, n, k);
    T sum[each][each] = {};
    of_a.fetch(), of_b.fetch();
    for (index begin = 0; begin < k; begin += chunk) {
        of_a.put(shared[0]), of_b.put(shared[1]);
        __syncthreads();
        of_a.fetch(), of_b.fetch();
        const int terms = k - begin < chunk ? int(k - begin) : chunk;
#pragma unroll 4
        for (int term = group; term < terms; term += groups) {
            T some_a[each], some_b[each];
#pragma unroll
            for (int i = 0; i < each; ++i) {
                some_a[i] = shared[0][term][y + i * side];
                some_b[i] = shared[1][term][x + i * side];
            }
#pragma unroll
            for (int i = 0; i < each; ++i) {
#pragma unroll
                for (int j = 0; j < each; ++j)
                    sum[i][j] = std::fma(some_a[i], some_b[j], sum[i][j]);
            }
        }
        __syncthreads();
    }
    // The groups' shares, (group, row, column).
    T* const shares = &shared[0][0][0];
    static_assert(groups * tile * tile <= 2 * chunk * (tile + 1), "they fit");
#pragma unroll
    for (int i = 0; i < each; ++i) {
#pragma unroll
        for (int j = 0; j < each; ++j) {
            shares[(group * tile + y + i * side) * tile + x + j * side] = sum[i][j];
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < tile * tile; e += threads) {
        const index row = top + e / tile, column = left + e % tile;
        if (row >= m || column >= n) continue;
        T total = T(0);
#pragma unroll
        for (int g = 0; g < groups; ++g) total += shares[g * tile * tile + e];
        T& to = c.data[blockIdx.z * c.direction + row * c.row + column];
        to = beta == T(0) ? total : total + beta * to;
    }
}

index tiles(index n) { return (n + tile - 1) / tile; }

}  // namespace

bool is_small(const Stream& stream, index directions, index m, index n, index k) {
    constexpr index most = 8 * chunk;  // terms that a multiprocessor adds for all its squares
    return k <= most &&
           directions * tiles(m) * tiles(n) * k <= most * native(stream).multiprocessors;
}

template <class T>
void small_gemm(const Stream& stream, index directions, Transpose ta, Transpose tb, index m,
                index n, index k, const Operand<T>& a, const Operand<T>& b, T beta,
                const Operand<T>& c) {
    const dim3 blocks(unsigned(tiles(n)), unsigned(tiles(m)), unsigned(directions));
    small_kernel<<<blocks, threads, 0, native(stream).stream>>>(
        m, n, k, factor(a, ta == Transpose::no), factor(b, tb == Transpose::yes), beta, c);
    check(cudaGetLastError(), "gemm");
}

#define SP_INSTANTIATE(T)                                                                     \
    template void small_gemm(const Stream&, index, Transpose, Transpose, index, index, index, \
                             const Operand<T>&, const Operand<T>&, T, const Operand<T>&);
SP_INSTANTIATE(float)
SP_INSTANTIATE(double)
#undef SP_INSTANTIATE

SP_END
