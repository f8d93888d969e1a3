#include "norm/fused.hpp"

#include "core/buffer.hpp"
#include "norm/cut.hpp"
#include "norm/runner.hpp"

SP_BEGIN

namespace normalization {

namespace {

Sweep sweep_of(const Norm& norm, Function function) {
    Sweep s{};
    s.function = function;
    s.activation = norm.activation;
    s.dtype = norm.shape.dtype;
    s.in[X] = norm.x;
    s.in[RES] = norm.gate ? nullptr : norm.residual;
    s.gate = norm.gate;
    s.setting = {norm.slope, s.gate != nullptr, s.in[RES] != nullptr};
    return s;
}

// What looks at x alone.
Sweep plain(const Shape& shape, Function function, const void* x) {
    Sweep s{};
    s.function = function;
    s.dtype = shape.dtype;
    s.in[X] = x;
    return s;
}

// The passes of a derivative, and its sums where the caller does not bring any.
struct Derivative {
    Derivative(const Stream& stream, const Norm& norm, const Parts& parts, int sums)
        : stream(stream), task{norm} {
        task.weighs = parts.weighs;
        task.sums = parts.sums;
        task.own = parts.own;
        if (parts.sums) return;
        const Shape& s = norm.shape;
        own = Buffer(stream, sums * s.groups() * s.channels * sizeof(double));
        task.sums = static_cast<double*>(own.data());
    }
    Sweep& add(Function function) {
        Sweep s = sweep_of(task.norm, function);
        s.setting.coupled = task.coupled();
        s.setting.along_h = s.setting.coupled || task.along.weight.data || task.other.weight.data;
        passes.push_back(s);
        return passes.back();
    }
    void go() const { take(stream, task, passes); }

    Stream stream;
    Task task;
    std::vector<Sweep> passes;
    Buffer own;
};

}  // namespace

index gate_bytes(const Shape& shape) { return Cut(shape).gate_bytes(); }

void forward(const Stream& stream, const Norm& norm, const Origin& how, void* y,
             std::uint8_t* new_gate) {
    Task task{norm};
    task.how = how;
    std::vector<Sweep> passes;
    if (how.source == Origin::batch && norm.shape.size() > 0) {
        passes.push_back(plain(norm.shape, Function::moments, norm.x));
    } else if (how.source != Origin::given) {
        passes.push_back(plain(norm.shape, Function::recall, nullptr));
    }
    Sweep map = sweep_of(norm, Function::forward);
    map.out[0] = y;
    map.new_gate = new_gate;
    passes.push_back(map);
    take(stream, task, passes);
}

void moments(const Stream& stream, const Shape& shape, const void* x, double* out) {
    if (shape.size() == 0) {
        fill_zero(stream, out, 2 * shape.channels * sizeof(double));
        return;
    }
    Task task{};
    task.norm.shape = shape;
    task.moments = out;
    take(stream, task, {plain(shape, Function::moments, x)});
}

void backward(const Stream& stream, const Norm& norm, const Parts& parts, const void* dy, void* dx,
              void* dresidual, const Values& dweight, const Values& dbias) {
    Derivative d(stream, norm, parts, backward_sums);
    d.task.dweight = dweight;
    d.task.dbias = dbias;
    if (parts.sum) d.add(Function::backward_sums).in[DY] = dy;
    if (parts.apply && dx) {
        Sweep& map = d.add(Function::backward);
        map.in[DY] = dy;
        map.out[0] = dx;
        map.out[1] = dresidual;
    }
    d.go();
}

void tangent(const Stream& stream, const Norm& norm, const Parts& parts, const Direction& along,
             void* yt) {
    Derivative d(stream, norm, parts, tangent_sums);
    d.task.along = along;
    if (parts.sum && (parts.weighs != 0.0 || !parts.apply)) {
        Sweep& sums = d.add(Function::tangent_sums);
        sums.in[XT] = along.x;
        sums.in[RES] = nullptr;
    }
    if (parts.apply) {
        Sweep& map = d.add(Function::tangent);
        map.in[XT] = along.x;
        map.in[REST] = along.residual;
        map.out[0] = yt;
    }
    d.go();
}

void second(const Stream& stream, const Norm& norm, const Parts& parts, const Direction& along,
            const void* dy, const void* dyt, void* dxt, void* dresidual_t, void* yt,
            const Values& dweight_t, const Values& dbias_t) {
    Derivative d(stream, norm, parts, second_sums);
    d.task.along = along;
    d.task.dweight = dweight_t;
    d.task.dbias = dbias_t;
    const bool piecewise = piecewise_linear(norm.activation);
    if (parts.sum) {
        Sweep& sums = d.add(Function::second_sums);
        sums.in[DY] = dy;
        sums.in[XT] = along.x;
        sums.in[DYT] = piecewise ? dyt : nullptr;
    }
    const auto all = [&](Function function) -> Sweep& {
        Sweep& s = d.add(function);
        s.in[DY] = dy;
        s.in[DYT] = dyt;
        s.in[XT] = along.x;
        s.in[REST] = along.residual;
        return s;
    };
    if (parts.more && !piecewise) all(Function::more_second_sums);
    if (parts.own) d.add(Function::own_gradients);
    if (parts.apply) {
        Sweep& map = all(Function::second);
        map.out[0] = dxt;
        map.out[1] = dresidual_t;
        map.out[2] = yt;
    }
    d.go();
}

void second_tangent(const Stream& stream, const Norm& norm, const Parts& parts,
                    const Direction& along, const Direction& other, void* ytt) {
    Derivative d(stream, norm, parts, second_tangent_sums);
    d.task.along = along;
    d.task.other = other;
    if (parts.sum && (parts.weighs != 0.0 || !parts.apply)) {
        Sweep& sums = d.add(Function::second_tangent_sums);
        sums.in[XT] = along.x;
        sums.in[XU] = other.x;
        sums.in[RES] = nullptr;
    }
    if (parts.apply) {
        Sweep& map = d.add(Function::second_tangent);
        map.in[XT] = along.x;
        map.in[XU] = other.x;
        map.in[REST] = along.residual;
        map.in[RESU] = other.residual;
        map.out[0] = ytt;
    }
    d.go();
}

}  // namespace normalization

SP_END
