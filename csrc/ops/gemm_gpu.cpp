#include "ops/gemm.hpp"

#include <dlfcn.h>

#include <mutex>
#include <type_traits>

#include "core/gpu.hpp"
#include "ops/gemm_gpu.hpp"
#include "ops/gemm_small_gpu.hpp"

SP_BEGIN

namespace {

// Of cublas_v2.h, so that the build needs no cuBLAS; these have not changed since version 12.
using Handle = void*;
enum Operation { none = 0, transposed = 1 };
template <class T>
using Gemm = int (*)(Handle, int ta, int tb, index m, index n, index k, const T* alpha, const T* a,
                     index lda, const T* b, index ldb, const T* beta, T* c, index ldc);
template <class T>
using Batched = int (*)(Handle, int ta, int tb, index m, index n, index k, const T* alpha,
                        const T* a, index lda, long long apart_a, const T* b, index ldb,
                        long long apart_b, const T* beta, T* c, index ldc, long long apart_c,
                        index count);

template <class T>
struct Products {
    Gemm<T> one;
    Batched<T> batched;
};

struct Library {
    int (*create)(Handle*);
    int (*set_stream)(Handle, cudaStream_t);
    int (*set_workspace)(Handle, void*, std::size_t);
    int (*property)(int type, int* value);
    const char* (*status)(int);
    Products<float> f32;
    Products<double> f64;
    std::string file;
};

const std::string release = std::to_string(CUDART_VERSION / 1000);
const std::string file_name = "libcublas.so." + release;

std::mutex path_mutex;
std::string path;

template <class F>
void find(void* library, const char* symbol, F& function) {
    function = reinterpret_cast<F>(dlsym(library, symbol));
    if (function == nullptr) throw DeviceError("cuBLAS " + release + ": no function " + symbol);
}

// One that is loaded already, PyTorch's say, comes first: two would double its memory.
Library load() {
    constexpr int flags = RTLD_NOW | RTLD_LOCAL;
    void* library = dlopen(file_name.c_str(), flags | RTLD_NOLOAD);
    if (library == nullptr) {
        const std::lock_guard<std::mutex> lock(path_mutex);
        if (!path.empty()) library = dlopen(path.c_str(), flags);
    }
    if (library == nullptr) library = dlopen(file_name.c_str(), flags);
    if (library == nullptr) {
        throw DeviceError("cuBLAS " + release + " was not found: pip install 'saddlepoint[cuda]'");
    }
    Library l;
    find(library, "cublasCreate_v2", l.create);
    find(library, "cublasSetStream_v2", l.set_stream);
    find(library, "cublasSetWorkspace_v2", l.set_workspace);
    find(library, "cublasGetProperty", l.property);
    find(library, "cublasGetStatusString", l.status);
    find(library, "cublasSgemm_v2_64", l.f32.one);
    find(library, "cublasDgemm_v2_64", l.f64.one);
    find(library, "cublasSgemmStridedBatched_64", l.f32.batched);
    find(library, "cublasDgemmStridedBatched_64", l.f64.batched);
    Dl_info info{};
    if (dladdr(reinterpret_cast<void*>(l.create), &info) && info.dli_fname) l.file = info.dli_fname;
    return l;
}

// Tried anew until it succeeds.
const Library& library() {
    static const Library library = load();
    return library;
}

void check_blas(int status, const char* what) {
    if (status != 0) throw DeviceError(std::string(what) + ": " + library().status(status));
}

// As much as cuBLAS takes for itself on the newest devices.
constexpr std::size_t workspace_bytes = std::size_t(32) << 20;

// The default math mode: float products are float's, without TF32. With memory of ours to work in,
// since in a recording it would ask for some within each product.
Handle handle(Native& n) {
    if (n.blas == nullptr) {
        Handle made = nullptr;
        check_blas(library().create(&made), "cublasCreate");
        check(cudaMalloc(&n.blas_workspace, workspace_bytes), "cudaMalloc");
        n.blas = made;
    }
    if (n.blas_stream != n.stream) {
        check_blas(library().set_stream(n.blas, n.stream), "cublasSetStream");
        check_blas(library().set_workspace(n.blas, n.blas_workspace, workspace_bytes),
                   "cublasSetWorkspace");
        n.blas_stream = n.stream;
    }
    return n.blas;
}

constexpr Operation operation(Transpose t) { return t == Transpose::yes ? transposed : none; }

template <class T>
const Products<T>& products() {
    if constexpr (std::is_same_v<T, float>) {
        return library().f32;
    } else {
        return library().f64;
    }
}

index leading(index ld) { return std::max<index>(ld, 1); }

std::string describe(const Library& l) {
    std::string version;
    for (int part = 0; part < 3; ++part) {
        int value = 0;
        check_blas(l.property(part, &value), "cublasGetProperty");
        version += (part ? "." : "") + std::to_string(value);
    }
    return "cuBLAS " + version + ", " + l.file;
}

}  // namespace

void set_library_path(const char* file) {
    const std::string given = file;
    const std::string name = given.substr(given.rfind('/') + 1);
    if (name != file_name && name.rfind(file_name + ".", 0) != 0) return;
    const std::lock_guard<std::mutex> lock(path_mutex);
    path = given;
}

// cuBLAS is column-major, where our arrays are the transposes: c^T = op(b)^T op(a)^T. Directions
// whose rows follow each other, and that share the other factor, are one product.
template <class T>
void gemm(const Context& context, index directions, Transpose ta, Transpose tb, index m, index n,
          index k, const Operand<T>& a, const Operand<T>& b, T beta, const Operand<T>& c) {
    if (ta == Transpose::no && b.direction == 0 && a.direction == m * a.row &&
        c.direction == m * c.row) {
        m *= directions;
        directions = 1;
    }
    if (m == 0 || n == 0 || directions == 0) return;
    if (is_small(context.stream, directions, m, n, k)) {
        return small_gemm(context.stream, directions, ta, tb, m, n, k, a, b, beta, c);
    }
    const Handle blas = handle(native(context.stream));
    const T one = T(1);
    if (directions == 1) {
        check_blas(products<T>().one(blas, operation(tb), operation(ta), n, m, k, &one, b.data,
                                     leading(b.row), a.data, leading(a.row), &beta, c.data,
                                     leading(c.row)),
                   "cublasGemm");
    } else {
        check_blas(
            products<T>().batched(blas, operation(tb), operation(ta), n, m, k, &one, b.data,
                                  leading(b.row), b.direction, a.data, leading(a.row), a.direction,
                                  &beta, c.data, leading(c.row), c.direction, directions),
            "cublasGemmStridedBatched");
    }
}

template <class T>
void gemm(const Context& context, Transpose ta, Transpose tb, index m, index n, index k, const T* a,
          index lda, const T* b, index ldb, T beta, T* c, index ldc) {
    gemm<T>(context, 1, ta, tb, m, n, k, shared(a, lda), shared(b, ldb), beta, shared(c, ldc));
}

#define SP_INSTANTIATE(T)                                                                          \
    template void gemm(const Context&, Transpose, Transpose, index, index, index, const T*, index, \
                       const T*, index, T, T*, index);                                             \
    template void gemm(const Context&, index, Transpose, Transpose, index, index, index,           \
                       const Operand<T>&, const Operand<T>&, T, const Operand<T>&);
SP_INSTANTIATE(float)
SP_INSTANTIATE(double)
#undef SP_INSTANTIATE

const char* blas_name() {
    try {
        static const std::string name = describe(library());
        return name.c_str();
    } catch (const DeviceError&) {
        return "none: cuBLAS was not found";
    }
}

SP_END
