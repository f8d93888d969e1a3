#include "optim/update.hpp"

#include <algorithm>
#include <utility>

#include "core/isa.hpp"
#include "optim/rules.hpp"

SP_BEGIN

#define SP_DECLARE(isa)                                                                     \
    namespace isa {                                                                         \
    template <class R>                                                                      \
    void update_piece(const R&, const Tensor<typename R::scalar>&, index begin, index end); \
    }
SP_FOR_EACH_ISA(SP_DECLARE)
#undef SP_DECLARE

namespace SADDLEPOINT_ISA {

template <class R, class T, std::size_t... I>
SP_HD void update_line(const R& rule, const Tensor<T>& tensor, index begin, index end,
                       std::index_sequence<I...>) {
    const R r = rule;
    T* const p = tensor.p;
    const T* const g = tensor.gradient;
    [[maybe_unused]] T* const state[] = {tensor.state[I]..., nullptr};
#pragma GCC ivdep
    for (index i = begin; i < end; ++i) r(p[i], g[i], state[I][i]...);
}

template <class R>
void update_piece(const R& rule, const Tensor<typename R::scalar>& tensor, index begin, index end) {
    update_line(rule, tensor, begin, end, std::make_index_sequence<R::states>());
}

#define SP_INSTANTIATE(R)                                                            \
    template void update_piece(const R<float>&, const Tensor<float>&, index, index); \
    template void update_piece(const R<double>&, const Tensor<double>&, index, index);
SP_RULES(SP_INSTANTIATE)
#undef SP_INSTANTIATE

}  // namespace SADDLEPOINT_ISA

#if defined(SADDLEPOINT_ISA_IS_BASE)

// Each thread takes an equal, contiguous share of all elements, whatever tensors they lie in.
template <class R>
void update(const Stream& stream, const R& rule,
            const std::vector<Tensor<typename R::scalar>>& tensors) {
    constexpr index line = 64;  // shares begin at multiples of this, to keep vectors whole
    index total = 0;
    for (const auto& tensor : tensors) total += (tensor.size + line - 1) / line;
    run(stream, double(total * line) * (2 + R::states), [&](const Context& context) {
        const Range mine = context.share(total);
        index at = 0;
        for (const auto& tensor : tensors) {
            const index lines = (tensor.size + line - 1) / line;
            const index begin = std::max(mine.begin - at, index(0)) * line;
            const index end = std::min((mine.end - at) * line, tensor.size);
            if (begin < end) {
                const auto piece = [&] { SP_PICK_ISA(update_piece, rule, tensor, begin, end); };
                piece();
            }
            at += lines;
        }
    });
}

#define SP_INSTANTIATE(R)                                                                    \
    template void update(const Stream&, const R<float>&, const std::vector<Tensor<float>>&); \
    template void update(const Stream&, const R<double>&, const std::vector<Tensor<double>>&);
SP_RULES(SP_INSTANTIATE)
#undef SP_INSTANTIATE

#endif

SP_END
