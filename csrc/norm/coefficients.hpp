// The algebra of a channel, in double: what becomes of its sums, and the coefficients that the
// functions of norm/formulas.hpp take. The same on every device.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/philox.hpp"
#include "norm/fused.hpp"

SP_BEGIN

namespace normalization {

// One call, as a channel sees it. Plain, so that it can be passed to a device.
struct Task {
    Norm norm{};
    Origin how{};
    double* moments = nullptr;    // where they go, if nothing else becomes of them
    double* sums = nullptr;       // (number, groups, channels)
    const double* own = nullptr;  // as in Parts
    double weighs = -1.0;         // as in Parts
    Direction along{}, other{};
    Values dweight{}, dbias{};  // the parameters' gradients, or the tangents of those

    SP_HD double& table(Table t, index g, index c) const { return norm.statistics[at(t, g, c)]; }
    SP_HD index at(int k, index g, index c) const {
        return (k * norm.shape.groups() + g) * norm.shape.channels + c;
    }
    SP_HD double& sum(int k, index g, index c) const { return sums[at(k, g, c)]; }
    // What a sum is multiplied by to make a mean.
    SP_HD double share(index g) const {
        return weighs < 0.0 ? 1.0 / double(norm.shape.count_of(g)) : weighs;
    }
    SP_HD bool coupled() const { return weighs != 0.0; }
    SP_HD double mean(int k, index g, index c) const {
        return coupled() ? share(g) * sum(k, g, c) : 0.0;
    }
};

// Where the sums are: of the backward pass, of a tangent, of the tangent of the backward pass, and
// of the tangent of the tangent.
enum BackwardSum : int { DZ, DZ_H };
enum SecondSum : int { X1, X2, S1, S2, S3, S4, S5 };
enum SecondTangentSum : int { V, V_H, U, U_H, V_U };
// The first of those that a pass gives.
SP_HD int first_sum(Function function) { return function == Function::more_second_sums ? S4 : 0; }

// The numbers of a channel that every pass starts from.
struct Channel {
    double mean, r, alpha, beta, gamma, delta, weight, bias, scale, offset;
    double rounded, low;  // the mean as elements see it, and what is left of it, times -r

    // The sum over alpha h + beta, from those over h and over 1, which may be infinite.
    SP_HD double of_h(double sum_h, double sum) const {
        return beta == 0.0 ? alpha * sum_h : alpha * sum_h + beta * sum;
    }
};

SP_HD Channel channel(const Task& t, index g, index c) {
    Channel k{};
    k.mean = t.table(Mean, g, c);
    k.r = t.table(InverseDeviation, g, c);
    k.alpha = k.gamma = 1.0;
    if (t.norm.all_tables) {
        k.alpha = t.table(Alpha, g, c);
        k.beta = t.table(Beta, g, c);
        k.gamma = t.table(Gamma, g, c);
        k.delta = t.table(Delta, g, c);
    }
    k.weight = t.norm.weight.get(c, 1.0);
    k.bias = t.norm.bias.get(c, 0.0);
    k.rounded = t.norm.shape.dtype == Dtype::f64 ? k.mean : double(float(k.mean));
    const bool finite = std::isfinite(k.rounded);
    k.low = finite ? (k.rounded - k.mean) * k.r : 0.0;
    k.scale = k.weight * k.alpha * k.r;
    k.offset = k.weight * k.beta + k.bias * k.gamma + k.delta + k.weight * k.alpha * k.low;
    return k;
}

// Of z' = c x' + c (x - mean) + c + residual'; x1 and x2 are mean(x') and mean(x' h). Returns what
// h is multiplied by.
SP_HD double direction(const Direction& along, const Channel& k, index c, double x1, double x2,
                       double* out) {
    const double weight_t = along.weight.get(c, 0.0), bias_t = along.bias.get(c, 0.0);
    const double times_h = weight_t * k.alpha - k.scale * x2;
    out[0] = k.scale;
    out[1] = k.r * times_h;
    out[2] = weight_t * k.beta + k.gamma * bias_t - k.scale * x1 + k.low * times_h;
    return times_h;
}

// sum (h dz)' of the elements that `sums` are of; the means are those of all.
SP_HD double product(const Task& t, const double* sums, const Channel& k, index g, index c) {
    double onto_dz = sums[t.at(S3, g, c)];
    if (t.coupled()) {
        onto_dz = onto_dz - t.mean(X1, g, c) * sums[t.at(S1, g, c)] -
                  t.mean(X2, g, c) * sums[t.at(S2, g, c)];
    }
    return sums[t.at(S5, g, c)] + k.r * onto_dz;
}

// dx' = e dz + e dz' + e x' + e (x - mean) + e; times_h is that of the direction.
SP_HD void second(const Task& t, const Channel& k, index g, index c, double times_h, double* e) {
    const double x1 = t.mean(X1, g, c), x2 = t.mean(X2, g, c);
    const double m1 = t.mean(S1, g, c), m2 = t.mean(S2, g, c);
    const double m1t = t.mean(S4, g, c), m2t = t.share(g) * product(t, t.sums, k, g, c);
    const double scale_t = k.r * times_h, d = k.scale;
    const double onto_h = -scale_t * m2 + d * k.r * x2 * m2 - d * m2t;
    e[0] = scale_t;
    e[1] = d;
    e[2] = -d * k.r * m2;
    e[3] = k.r * onto_h;
    e[4] = k.low * onto_h - scale_t * m1 - d * m1t + d * k.r * x1 * m2;
}

// z'* = e x' + e x* + e (x - mean) + e. With h' = r (x' - v1 - v2 h), h* likewise and
// mean(x' h*) = r (mean(x' x*) - v1 u1 - v2 u2), from the product rule on h':
// h'* = -r (u2 h' + v2 h* + mean(x' h*) h).
SP_HD void second_tangent(const Task& t, const Channel& k, index g, index c, double* e) {
    const double v1 = t.mean(V, g, c), v2 = t.mean(V_H, g, c);
    const double u1 = t.mean(U, g, c), u2 = t.mean(U_H, g, c);
    const double v = k.alpha * t.other.weight.get(c, 0.0) - k.scale * u2;  // h' is multiplied by
    const double u = k.alpha * t.along.weight.get(c, 0.0) - k.scale * v2;  // h* is
    const double mixed = k.r * (t.mean(V_U, g, c) - v1 * u1 - v2 * u2);
    const double onto_h = -k.r * (v * v2 + u * u2) - k.scale * mixed;
    e[0] = k.r * v;
    e[1] = k.r * u;
    e[2] = k.r * onto_h;
    e[3] = k.low * onto_h - k.r * (v * v1 + u * u1);
}

// Whether floats do for a channel: none of what its elements are multiplied by leaves their normal
// numbers, nor does the product of two deviations, nor the distance from the mean.
SP_HD bool within_float(const Channel& k, Function function, const double* c) {
    constexpr double least = 1.17549435e-38, most = 3.40282347e38;
    if (k.r > 1e12 || k.r < 1e-12 || std::fabs(k.rounded) > 1e31) return !std::isfinite(k.r);
    const int n = coefficients_of(function);
    bool all = true;
    for (int i = SCALE; i < n; ++i) all &= std::fabs(c[i]) >= least && std::fabs(c[i]) <= most;
    if (all) return true;
    for (int i = SCALE; i < n; ++i) {
        const double size = std::fabs(c[i]);
        if (std::isfinite(size) && size != 0.0 && (size < least || size > most)) return false;
    }
    return true;
}

SP_HD void numbers(const Task& t, Function function, index g, index c, const Channel& k,
                   double* out) {
    out[MEAN] = k.rounded;
    out[SCALE] = k.scale;
    out[OFFSET] = k.offset;
    switch (function) {
        case Function::forward: return;
        case Function::backward: {
            const double m1 = t.mean(DZ, g, c), m2 = t.mean(DZ_H, g, c);
            out[own] = k.scale;
            out[own + 1] = -k.scale * k.r * m2;
            out[own + 2] = -k.scale * (m1 + k.low * m2);
            return;
        }
        case Function::tangent:
            direction(t.along, k, c, t.mean(X1, g, c), t.mean(X2, g, c), out + own);
            return;
        case Function::second: {
            const double times_h =
                direction(t.along, k, c, t.mean(X1, g, c), t.mean(X2, g, c), out + own);
            second(t, k, g, c, times_h, out + own + 3);
            return;
        }
        case Function::second_tangent:
            direction(t.along, k, c, t.mean(V, g, c), t.mean(V_H, g, c), out + own);
            direction(t.other, k, c, t.mean(U, g, c), t.mean(U_H, g, c), out + own + 3);
            second_tangent(t, k, g, c, out + own + 6);
            return;
        default:
            out[R] = k.r;
            out[LOW] = k.low;
            if (function == Function::more_second_sums) {
                direction(t.along, k, c, t.mean(X1, g, c), t.mean(X2, g, c), out + LOW + 1);
            }
    }
}

// What a pass's function takes; returns `within_float`.
SP_HD bool coefficients(const Task& t, Function function, index g, index c, double* out) {
    const Channel k = channel(t, g, c);
    numbers(t, function, g, c, k, out);
    return within_float(k, function, out);
}

SP_HD double uniform(std::uint32_t bits) { return (double(bits) + 0.5) * (1.0 / 4294967296.0); }

// What follows from the mean and the sum of squares about it: the tables of a channel,
SP_HD void set_tables(const Task& t, index g, index c, double mean, double square) {
    const Origin& how = t.how;
    const double r = 1.0 / std::sqrt(square / double(t.norm.shape.count_of(g)) + how.eps);
    t.table(Mean, g, c) = mean;
    t.table(InverseDeviation, g, c) = r;
    if (!t.norm.all_tables) return;
    double alpha = 1.0, beta = 0.0, gamma = 1.0, delta = 0.0;
    if (how.r_max > 0.0) {
        const double deviation = std::sqrt(how.running_variance.get(c, 1.0) + how.eps);
        const double ratio = 1.0 / (r * deviation);
        const double shift = (mean - how.running_mean.get(c, 0.0)) / deviation;
        alpha = std::min(std::max(ratio, 1.0 / how.r_max), how.r_max);
        beta = std::min(std::max(shift, -how.d_max), how.d_max);
    }
    if (how.noise_scale > 0.0) {
        const Philox bits = philox({{std::uint32_t(c), std::uint32_t(std::uint64_t(c) >> 32),
                                     std::uint32_t(how.step), std::uint32_t(how.step >> 32)}},
                                   how.seed);
        gamma = 1.0 + (how.noise_scale - 1.0) * uniform(bits.word[0]);
        delta = how.noise_mean * (2.0 * uniform(bits.word[1]) - 1.0);
        alpha *= gamma;
        beta *= gamma;
    }
    t.table(Alpha, g, c) = alpha;
    t.table(Beta, g, c) = beta;
    t.table(Gamma, g, c) = gamma;
    t.table(Delta, g, c) = delta;
}
// and then the running statistics.
SP_HD void move_running(const Task& t, index g, index c, double mean, double square) {
    const Origin& how = t.how;
    if (how.running_mean.data == nullptr) return;
    const double count = double(t.norm.shape.count_of(g));
    const double m = how.cumulative ? 1.0 / (how.seen + double(g) + 1.0) : how.momentum;
    const double old_mean = how.running_mean.get(c, 0.0);
    const double old_variance = how.running_variance.get(c, 1.0);
    how.running_mean.set(c, (1.0 - m) * old_mean + m * mean);
    how.running_variance.set(c, (1.0 - m) * old_variance + m * (square / (count - 1.0)));
}
SP_HD void set_statistics(const Task& t, index g, index c, double mean, double square) {
    if (t.moments) {
        t.moments[c] = mean;
        t.moments[t.norm.shape.channels + c] = square;
        return;
    }
    set_tables(t, g, c, mean, square);
    move_running(t, g, c, mean, square);
}

// The running statistics as the batch's.
SP_HD void recall(const Task& t, index c) {
    for (index g = 0; g < t.norm.shape.groups(); ++g) {
        t.table(Mean, g, c) = t.how.running_mean.get(c, 0.0);
        t.table(InverseDeviation, g, c) =
            1.0 / std::sqrt(t.how.running_variance.get(c, 1.0) + t.how.eps);
        if (!t.norm.all_tables) continue;
        t.table(Alpha, g, c) = t.table(Gamma, g, c) = 1.0;
        t.table(Beta, g, c) = t.table(Delta, g, c) = 0.0;
    }
}

SP_HD void gradients(const Task& t, index c) {
    double dw = 0.0, db = 0.0;
    for (index g = 0; g < t.norm.shape.groups(); ++g) {
        const Channel k = channel(t, g, c);
        dw += k.of_h(t.sum(DZ_H, g, c), t.sum(DZ, g, c));
        db += k.gamma * t.sum(DZ, g, c);
    }
    t.dweight.set(c, dw);
    t.dbias.set(c, db);
}
SP_HD void gradient_tangents(const Task& t, index c) {
    const double* const own = t.own ? t.own : t.sums;
    double dw = 0.0, db = 0.0;
    for (index g = 0; g < t.norm.shape.groups(); ++g) {
        const Channel k = channel(t, g, c);
        const double shift = own[t.at(S4, g, c)];
        dw += k.of_h(product(t, own, k, g, c), shift);
        db += k.gamma * shift;
    }
    t.dweight.set(c, dw);
    t.dbias.set(c, db);
}

// What is due when a pass's sums over a channel are there, in all its groups.
SP_HD void finish(const Task& t, Function function, index c) {
    switch (function) {
        case Function::recall: return recall(t, c);
        case Function::backward_sums: return gradients(t, c);
        case Function::own_gradients:
        case Function::more_second_sums: return gradient_tangents(t, c);
        case Function::second_sums:
            if (piecewise_linear(t.norm.activation)) return gradient_tangents(t, c);
            for (index g = 0; g < t.norm.shape.groups(); ++g) {
                t.sum(S4, g, c) = t.sum(S5, g, c) = 0.0;
            }
            return;
        default: return;
    }
}

}  // namespace normalization

SP_END
