#include "ops/gemm.hpp"

#include <string>

// Of the library that we ship its own symbols, with its prefix, so that no other BLAS of the
// process can answer; of a distribution's the plain ones.
#if defined(SADDLEPOINT_BLAS_PREFIX)
#define SP_JOIN(a, b) a##b
#define SP_NAME(prefix, name) SP_JOIN(prefix, name)
#define SP_BLAS(name) SP_NAME(SADDLEPOINT_BLAS_PREFIX, name)
#else
#define SP_BLAS(name) name
#endif
extern "C" {
void SP_BLAS(cblas_sgemm)(int order, int ta, int tb, int m, int n, int k, float alpha,
                          const float* a, int lda, const float* b, int ldb, float beta, float* c,
                          int ldc);
void SP_BLAS(cblas_dgemm)(int order, int ta, int tb, int m, int n, int k, double alpha,
                          const double* a, int lda, const double* b, int ldb, double beta,
                          double* c, int ldc);
void SP_BLAS(openblas_set_num_threads)(int n);
char* SP_BLAS(openblas_get_config)();
char* SP_BLAS(openblas_get_corename)();
}

SP_BEGIN

namespace {

constexpr int row_major = 101;
constexpr int blas(Transpose t) { return t == Transpose::yes ? 112 : 111; }

// Its own threads would spin beside OpenMP's, which slows both by six.
const bool single_threaded = [] {
    SP_BLAS(openblas_set_num_threads)(1);
    return true;
}();

}  // namespace

template <>
void gemm(const Context&, Transpose ta, Transpose tb, index m, index n, index k, const float* a,
          index lda, const float* b, index ldb, float beta, float* c, index ldc) {
    SP_BLAS(cblas_sgemm)(row_major, blas(ta), blas(tb), int(m), int(n), int(k), 1.0f, a, int(lda),
                         b, int(ldb), beta, c, int(ldc));
}

template <>
void gemm(const Context&, Transpose ta, Transpose tb, index m, index n, index k, const double* a,
          index lda, const double* b, index ldb, double beta, double* c, index ldc) {
    SP_BLAS(cblas_dgemm)(row_major, blas(ta), blas(tb), int(m), int(n), int(k), 1.0, a, int(lda), b,
                         int(ldb), beta, c, int(ldc));
}

template <class T>
void gemm(const Context& context, index directions, Transpose ta, Transpose tb, index m, index n,
          index k, const Operand<T>& a, const Operand<T>& b, T beta, const Operand<T>& c) {
    for (index d = 0; d < directions; ++d) {
        const Operand<T> ad = a.from(d, 0), bd = b.from(d, 0), cd = c.from(d, 0);
        gemm<T>(context, ta, tb, m, n, k, ad.data, ad.row, bd.data, bd.row, beta, cd.data, cd.row);
    }
}
template void gemm(const Context&, index, Transpose, Transpose, index, index, index,
                   const Operand<float>&, const Operand<float>&, float, const Operand<float>&);
template void gemm(const Context&, index, Transpose, Transpose, index, index, index,
                   const Operand<double>&, const Operand<double>&, double, const Operand<double>&);

const char* blas_name() {
    static const std::string name =
        std::string(SP_BLAS(openblas_get_config)()) + ", " + SP_BLAS(openblas_get_corename)();
    return name.c_str();
}

SP_END
