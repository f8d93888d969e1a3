#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Its numbers, in the order of `hyper`.
enum MuonNumber {
    MuonMaximize = 2,
    MuonBeta,
    MuonNesterov,
    MuonA,
    MuonB,
    MuonC,
    MuonEps,
    MuonSteps,
    MuonMatchRms
};

// The last line of Muon: p = (1 - lr weight_decay) p - lr u, with u from optim/muon_cpu.hpp.
template <class T>
struct Muon {
    using scalar = T;
    static constexpr const char* name = "muon";
    static constexpr int states = 0;
    static constexpr const char* hyper[] = {
        "lr",  "decoupled_decay", "maximize", "momentum", "nesterov", "a", "b", "c",
        "eps", "ns_steps",        "match_rms"};

    T shrink, rate;
    SP_HD Muon(const double* h, index, double*) : shrink(T(1.0 - h[0] * h[1])), rate(T(h[0])) {}

    SP_HD void operator()(T& p, const T& u) const { p = std::fma(-rate, u, p * shrink); }
};

// Its first line: b += (1 - momentum)(g - b), and what is to be orthogonalized is b, or with
// Nesterov g + momentum (b - g).
template <class T>
struct MuonMomentum {
    using scalar = T;
    static constexpr bool internal = true;
    static constexpr const char* name = "muon_momentum";
    static constexpr int states = 1;
    static constexpr const char* hyper[] = {"lr"};

    T sign, momentum, rest;
    bool nesterov;
    SP_HD MuonMomentum(const double* h, index, double*)
        : sign(T(sign_of_maximize(h[MuonMaximize]))),
          momentum(T(h[MuonBeta])),
          rest(T(1.0 - h[MuonBeta])),
          nesterov(h[MuonNesterov] != 0.0) {}

    SP_HD void operator()(T& x, const T& gradient, T& b) const {
        const T g = sign * gradient;
        b = toward(b, g, rest);
        x = nesterov ? toward(g, b, momentum) : b;
    }
};

SP_END
