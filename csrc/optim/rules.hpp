// Every rule, once: a new one is a file in rules/ and a word here.
#pragma once

#include "optim/rules/adadelta.hpp"
#include "optim/rules/adafactor.hpp"
#include "optim/rules/adagrad.hpp"
#include "optim/rules/adam.hpp"
#include "optim/rules/adamax.hpp"
#include "optim/rules/adan.hpp"
#include "optim/rules/asgd.hpp"
#include "optim/rules/lamb.hpp"
#include "optim/rules/lars.hpp"
#include "optim/rules/lion.hpp"
#include "optim/rules/muon.hpp"
#include "optim/rules/nadam.hpp"
#include "optim/rules/radam.hpp"
#include "optim/rules/rmsprop.hpp"
#include "optim/rules/rprop.hpp"
#include "optim/rules/sgd.hpp"
#include "optim/rules/unmoved.hpp"

#define SP_RULES(X)            \
    X(Sgd)                     \
    X(SgdMomentum)             \
    X(Adagrad)                 \
    X(RmsProp)                 \
    X(RmsPropMomentum)         \
    X(RmsPropCentered)         \
    X(RmsPropCenteredMomentum) \
    X(Adam)                    \
    X(AmsGrad)                 \
    X(Rprop)                   \
    X(Adadelta)                \
    X(Adamax)                  \
    X(NAdam)                   \
    X(RAdam)                   \
    X(Asgd)                    \
    X(Lion)                    \
    X(Adan)                    \
    X(Lamb)                    \
    X(Lars)                    \
    X(Adafactor)               \
    X(AdafactorGradient)       \
    X(Muon)                    \
    X(MuonMomentum)            \
    X(Unmoved)

SP_BEGIN

// A rule's scalars lie in a block of this size.
constexpr std::size_t rule_bytes = 128;

// Rules that need norms of a whole tensor, |p| and that of the direction which `prepare` gives. It
// has moved so many states by then (`prepared`), the first ones; `set_norms` takes the squares.
template <class R, class = void>
constexpr bool by_norms = false;
template <class R>
constexpr bool by_norms<R, decltype(void(R::prepared))> = true;

// Rules that begin or end a step of others.
template <class R, class = void>
constexpr bool internal = false;
template <class R>
constexpr bool internal<R, decltype(void(R::internal))> = true;

enum class RuleId : int {
#define SP_ID(R) R,
    SP_RULES(SP_ID)
#undef SP_ID
};

SP_END
