// A layer bound to a number of rows, its four methods, and the plan that lays its arrays out.
//
// What flows between layers is a Signal: a value, its cotangent (gradient), its tangent, and the
// tangent of the cotangent. The parameters are a signal too: theta, its gradient g, a direction v
// and the product Hv. So a forward pass fills values, a backward pass gradients, and running the
// tangents of both gives Hv exactly (Pearlmutter 1994).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "core/stream.hpp"
#include "ops/map.hpp"

SP_BEGIN

template <class T>
struct Signal {
    index columns = 0;
    T *value = nullptr, *gradient = nullptr;            // (rows, columns)
    T *tangent = nullptr, *gradient_tangent = nullptr;  // (directions, rows, columns)
};

// What a network is made of; offsets point into the flat vectors of parameters and buffers.
struct LayerSpec {
    std::string kind;
    index inputs = 0, outputs = 0;
    index parameters = 0, buffers = 0;
    bool bias = true, affine = true;
    double eps = 1e-5, momentum = 0.1;
    bool cumulative = false;  // instead of momentum: the average of all batches
    double negative_slope = 0.01;
    std::vector<LayerSpec> children;
};

enum class Level { value, gradient, product };

// A sum over rows into one piece of the parameters' gradient, done by one member once all rows are.
struct Job {
    double work;
    std::function<void(const Context&)> gradient;
    std::function<void(const Context&, Range directions)> product;
};

template <class T>
struct Plan {
    index rows;
    Level level;
    bool frozen, input_gradient;
    bool couples_rows = false;  // some layer sums over rows within a pass

    // One evaluation's pointers: set before each pass.
    Signal<T> theta;  // (columns), and (directions, columns)
    T* buffers = nullptr;
    bool update_buffers = false, accumulate = false;
    bool first = true;  // no evaluation has come to its end in this memory

    Arena values, tangents;
    std::vector<Job> jobs;
    std::vector<std::unique_ptr<Signal<T>>> signals;

    Signal<T>* signal(index columns, bool with_gradient) {
        auto& s = *signals.emplace_back(std::make_unique<Signal<T>>());
        s.columns = columns;
        values.add(s.value, rows * columns);
        if (with_gradient && level >= Level::gradient) values.add(s.gradient, rows * columns);
        if (with_gradient && level == Level::product) {
            tangents.add(s.tangent, rows * columns);
            tangents.add(s.gradient_tangent, rows * columns);
        }
        return &s;
    }
};

template <class T>
class Layer {
   public:
    virtual ~Layer() = default;
    virtual void forward(const Context& context) = 0;
    virtual void backward(const Context& context) = 0;
    virtual void forward_tangent(const Context& context, index directions) = 0;
    virtual void backward_tangent(const Context& context, index directions) = 0;

    Signal<T>* output = nullptr;
};

// Binds a layer to its input. Arrays get their addresses when the plan's arenas are placed.
template <class T>
std::unique_ptr<Layer<T>> make_layer(const LayerSpec& spec, Plan<T>& plan, Signal<T>* input);

// One per kind of layer; make_layer (network.cpp) lists them.
template <class T>
std::unique_ptr<Layer<T>> make_linear(const LayerSpec&, Plan<T>&, Signal<T>* input);
template <class T>
std::unique_ptr<Layer<T>> make_batch_norm(const LayerSpec&, Plan<T>&, Signal<T>* input);
template <class T>
std::unique_ptr<Layer<T>> make_activation(const LayerSpec&, Plan<T>&, Signal<T>* input);
SP_END
