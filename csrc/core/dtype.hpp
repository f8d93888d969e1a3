// The types that arrays hold, and rounding between them. Arithmetic is in float or double only.
#pragma once

#include "core/math.hpp"

namespace saddlepoint {

enum class Dtype : std::uint8_t { f32, f64, bf16, f16, i16 };

constexpr index bytes_of(Dtype type) { return type == Dtype::f64 ? 8 : type == Dtype::f32 ? 4 : 2; }

struct bfloat16 {
    std::uint16_t bits;
};
struct float16 {
    std::uint16_t bits;
};

// Elements as they are loaded and stored: a loop over integers vectorizes, one over structs does
// not.
template <class S>
struct RawOf {
    using type = S;
};
template <>
struct RawOf<bfloat16> {
    using type = std::uint16_t;
};
template <>
struct RawOf<float16> {
    using type = std::uint16_t;
};
template <class S>
using Raw = typename RawOf<S>::type;
SP_HD float raw(float x) { return x; }
SP_HD double raw(double x) { return x; }
SP_HD std::uint16_t raw(bfloat16 x) { return x.bits; }
SP_HD std::uint16_t raw(float16 x) { return x.bits; }

SP_HD float widen(float x) { return x; }
SP_HD double widen(double x) { return x; }
SP_HD float widen(bfloat16 x) { return bit_cast<float>(std::uint32_t(x.bits) << 16); }
SP_HD float widen(float16 x) {
    const std::uint32_t rest = std::uint32_t(x.bits & 0x7fff) << 13;
    const std::uint32_t exponent = rest & (0x7c00u << 13);
    const float normal = bit_cast<float>(rest + (112u << 23));
    const float tiny = bit_cast<float>(rest + (113u << 23)) - bit_cast<float>(113u << 23);
    const float special = bit_cast<float>(rest + (224u << 23));
    const float y = exponent == 0 ? tiny : exponent == (0x7c00u << 13) ? special : normal;
    return bit_cast<float>(bit_cast<std::uint32_t>(y) | std::uint32_t(x.bits & 0x8000) << 16);
}

// To the nearest, ties to even, as PyTorch's conversions.
template <class To>
SP_HD To rounded(float x);
template <>
SP_HD float rounded<float>(float x) {
    return x;
}
template <>
SP_HD double rounded<double>(float x) {
    return x;
}
template <>
SP_HD bfloat16 rounded<bfloat16>(float x) {
    const auto u = bit_cast<std::uint32_t>(x);
    const std::uint32_t near = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return {std::uint16_t(x != x ? 0x7fc0 : near)};
}
template <>
SP_HD float16 rounded<float16>(float x) {
    const auto u = bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = u & 0x80000000u, a = u ^ sign;
    const std::uint32_t special = a > (255u << 23) ? 0x7e00 : 0x7c00;
    // Adding half rounds at the last bit of a subnormal half.
    const std::uint32_t tiny =
        bit_cast<std::uint32_t>(bit_cast<float>(a) + 0.5f) - bit_cast<std::uint32_t>(0.5f);
    const std::uint32_t normal = (a - (112u << 23) + 0xfff + ((a >> 13) & 1)) >> 13;
    const std::uint32_t h = a >= (143u << 23) ? special : a < (113u << 23) ? tiny : normal;
    return {std::uint16_t(h | sign >> 16)};
}

// Stochastic rounding: up or down with the odds that keep the mean, given 16 random bits.
template <class To>
SP_HD To rounded_randomly(float x, std::uint32_t random);
template <>
SP_HD float rounded_randomly<float>(float x, std::uint32_t) {
    return x;
}
template <>
SP_HD double rounded_randomly<double>(float x, std::uint32_t) {
    return x;
}
template <>
SP_HD bfloat16 rounded_randomly<bfloat16>(float x, std::uint32_t random) {
    const auto u = bit_cast<std::uint32_t>(x);
    const bool finite = (u & 0x7f800000u) != 0x7f800000u;
    // Integers are chosen between, since a choice between structs is a branch.
    const std::uint32_t up = (u + random) >> 16, near = rounded<bfloat16>(x).bits;
    return {std::uint16_t(finite ? up : near)};
}
template <>
SP_HD float16 rounded_randomly<float16>(float x, std::uint32_t random) {
    const auto u = bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = u & 0x80000000u, a = u ^ sign;
    const float units = (a < (113u << 23) ? bit_cast<float>(a) : 0.f) * 16777216.f;
    const auto whole = std::uint32_t(units);
    const std::uint32_t up = float(random) * (1.f / 65536.f) < units - float(whole) ? 1 : 0;
    const std::uint32_t normal = (a - (112u << 23) + (random >> 3)) >> 13;
    const std::uint32_t h = a < (113u << 23) ? whole + up : normal > 0x7c00 ? 0x7c00 : normal;
    const bool finite = a < (143u << 23);
    const std::uint32_t near = rounded<float16>(x).bits;
    return {std::uint16_t(finite ? h | sign >> 16 : near)};
}

// An exact float as the bfloat16 nearest to it (ties away from zero) and the 16 bits below.
SP_HD float joined(bfloat16 high, std::int16_t low) {
    const std::uint32_t top = high.bits - (low < 0 ? 1u : 0u);
    return bit_cast<float>(top << 16 | std::uint16_t(low));
}
SP_HD bfloat16 high_part(float x) {
    const std::uint32_t u = x != x ? 0x7fc00000u : bit_cast<std::uint32_t>(x);
    return {std::uint16_t((u >> 16) + ((u >> 15) & 1))};
}
SP_HD std::int16_t low_part(float x) {
    return std::int16_t(x != x ? 0 : bit_cast<std::uint32_t>(x) & 0xffff);
}

}  // namespace saddlepoint
