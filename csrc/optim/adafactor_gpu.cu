// Sums are in double, in an order of their own; but for the last bits of a sum the results are the
// CPU's.

#include "core/buffer.hpp"
#include "ops/map_gpu.cuh"
#include "optim/update_gpu.cuh"

SP_BEGIN

namespace {

using namespace optim_cuda;
using optim_cuda::threads;

// The step of one tensor. The gradient becomes u.
template <class T>
struct AdafactorStep {
    Device device;
    int tensor;
    index matrices, rows, columns, size;
    T *g, *first, *column_var;  // `first` is the rows' variance, or the whole one
    T* mean;                    // of each matrix's rows
    double* sums;               // |u|^2 and |p|^2 by slab, one after all of the other

    __device__ bool skipped() const { return device.status->skipped; }
    __device__ Adafactor<T>& rule() const {
        return *reinterpret_cast<Adafactor<T>*>(&device.blocks[tensor]);
    }
};

// As many threads as a line has use for share it.
int width_of(index columns) {
    int width = 1;
    while (width < threads && width < columns) width *= 2;
    return width;
}

template <class T>
__global__ void __launch_bounds__(threads)
    rows_kernel(const __grid_constant__ AdafactorStep<T> a, const int width) {
    if (a.skipped()) return;
    const auto weight = T(a.rule().weight);
    const index all = a.matrices * a.rows, each = threads / width;
    const int lane = int(threadIdx.x) % width;
    for (index base = blockIdx.x * each; base < all; base += gridDim.x * each) {
        const index row = base + int(threadIdx.x) / width;
        double sum = 0.0;
        if (row < all) {
            const T* const g = a.g + row * a.columns;
            for (index j = lane; j < a.columns; j += width) sum = add_square(sum, double(g[j]));
        }
        sum = folded(sum, width);
        if (row < all && lane == 0) {
            a.first[row] = toward(a.first[row], T(sum / double(a.columns)), weight);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(threads)
    mean_kernel(const __grid_constant__ AdafactorStep<T> a, const int width) {
    if (a.skipped()) return;
    const auto eps1 = T(a.rule().eps1);
    const index each = threads / width;
    const int lane = int(threadIdx.x) % width;
    for (index base = blockIdx.x * each; base < a.matrices; base += gridDim.x * each) {
        const index matrix = base + int(threadIdx.x) / width;
        double sum = 0.0;
        if (matrix < a.matrices) {
            const T* const r = a.first + matrix * a.rows;
            for (index i = lane; i < a.rows; i += width) sum += double(r[i]);
        }
        sum = folded(sum, width);
        if (matrix < a.matrices && lane == 0) {
            a.mean[matrix] = std::max(T(sum / double(a.rows)), eps1);
        }
    }
}

template <class T>
struct Columns {
    using scalar = T;
    static constexpr int arity = 1, sums = 1;
    AdafactorStep<T> a;

    __device__ void operator()(double (&sum)[1], const T& g) const {
        sum[0] = add_square(sum[0], double(g));
    }
    __device__ void finish(const double (&sum)[1], index matrix, index column) const {
        if (a.skipped()) return;
        T& c = a.column_var[matrix * a.columns + column];
        c = toward(c, T(sum[0] / double(a.rows)), T(a.rule().weight));
    }
};

template <class T>
__global__ void __launch_bounds__(threads)
    direction_kernel(const __grid_constant__ AdafactorStep<T> a) {
    if (a.skipped()) return;
    const Item& item = a.device.items[a.tensor];
    const auto weight = T(a.rule().weight);
    const auto least = T(a.rule().eps1 * a.rule().eps1);
    const index slabs = slabs_of(a.size);
    for (index s = blockIdx.x; s < slabs; s += gridDim.x) {
        const index begin = s * slab, end = begin + slab < a.size ? begin + slab : a.size;
        double u2 = 0.0, p2 = 0.0;
        for (index i = begin + index(threadIdx.x); i < end; i += threads) {
            const T g = a.g[i];
            T v;
            if (a.column_var) {
                const index row = quotient(i, a.columns), matrix = quotient(row, a.rows);
                const index column = matrix * a.columns + i - row * a.columns;
                v = a.first[row] * (a.column_var[column] / a.mean[matrix]);
            } else {
                v = a.first[i] = toward(a.first[i], g * g, weight);
            }
            const T u = g / std::sqrt(v < least ? least : v);
            a.g[i] = u;
            u2 = add_square(u2, double(u));
            p2 = add_square(p2, double(parameter<T>(a.device.numbers, item, i)));
        }
        u2 = folded(u2, threads);
        p2 = folded(p2, threads);
        if (threadIdx.x == 0) {
            a.sums[s] = u2;
            a.sums[slabs + s] = p2;
        }
    }
}

template <class T>
__global__ void __launch_bounds__(threads) rate_kernel(const __grid_constant__ AdafactorStep<T> a) {
    if (a.skipped()) return;
    const index slabs = slabs_of(a.size);
    const double u2 = sum_of(a.sums, slabs), p2 = sum_of(a.sums + slabs, slabs);
    if (threadIdx.x != 0) return;
    Adafactor<T>& rule = a.rule();
    const double rms_u = std::sqrt(u2 / double(a.size)), rms_p = std::sqrt(p2 / double(a.size));
    rule.rate = T(std::max(rule.eps2, rms_p) * rule.rho / std::max(1.0, rms_u / rule.d));
}

template <class T>
void factored(const Stream& stream, const AdafactorStep<T>& a) {
    const cudaStream_t queue = native(stream).stream;
    const int of_columns = width_of(a.columns), of_rows = width_of(a.rows);
    rows_kernel<<<grid(stream, a.matrices * a.rows, threads / of_columns), threads, 0, queue>>>(
        a, of_columns);
    check(cudaGetLastError(), "adafactor");
    const Buffer partial(
        stream,
        std::size_t(reduce_columns_scratch(a.matrices, a.rows, a.columns, 1)) * sizeof(double));
    reduce_columns<Columns<T>>(Context{0, 1, stream}, {a}, {a.matrices, a.rows, a.columns},
                               {{each(a.g, a.rows, a.columns)}},
                               static_cast<double*>(partial.data()));
    mean_kernel<<<grid(stream, a.matrices, threads / of_rows), threads, 0, queue>>>(a, of_rows);
    check(cudaGetLastError(), "adafactor");
}

template <class T>
void adafactor_typed(const MatrixPart& part) {
    const Tensor& t = part.tensor;
    const Stream& stream = part.stream;
    const cudaStream_t queue = native(stream).stream;
    const index slabs = slabs_of(t.size);
    const Buffer gradient(stream, std::size_t(t.size) * sizeof(T));
    const Buffer mean(stream, std::size_t(t.batch) * sizeof(T));
    const Buffer sums(stream, std::size_t(2 * slabs) * sizeof(double));
    const AdafactorStep<T> a{part.device,
                             part.number,
                             t.batch,
                             t.rows,
                             t.columns,
                             t.size,
                             static_cast<T*>(gradient.data()),
                             static_cast<T*>(t.state[0].data),
                             static_cast<T*>(t.state[1].data),
                             static_cast<T*>(mean.data()),
                             static_cast<double*>(sums.data())};
    gather(part, RuleId::AdafactorGradient, a.g);
    if (a.column_var) factored(stream, a);
    direction_kernel<<<grid(stream, slabs, 1), threads, 0, queue>>>(a);
    check(cudaGetLastError(), "adafactor");
    rate_kernel<<<1, threads, 0, queue>>>(a);
    check(cudaGetLastError(), "adafactor");
    apply<T>(part, a.g);
}

}  // namespace

void optim_cuda::adafactor(const MatrixPart& part) {
    if (part.tensor.p.dtype == Dtype::f64) {
        adafactor_typed<double>(part);
    } else {
        adafactor_typed<float>(part);
    }
}

SP_END
