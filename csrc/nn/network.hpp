// A network bound to a number of rows: one evaluation of loss and gradient, and any number of
// products with the Hessian at that point.
#pragma once

#include <tuple>

#include "core/recording.hpp"
#include "nn/layer.hpp"
#include "nn/loss.hpp"

SP_BEGIN

struct NetworkSpec {
    LayerSpec layers;
    std::string loss;       // empty: the network alone
    index inputs, outputs;  // columns
    index parameters;       // n
    index buffers;          // running statistics
};

// Memory for tangents, shared by the passes of one linearization; it grows to the largest need.
struct Scratch {
    Buffer buffer;
};

template <class T>
class Pass {
   public:
    Pass(const Stream& stream, const NetworkSpec& spec, index rows, Level level, bool frozen,
         bool input_gradient, std::shared_ptr<Scratch> scratch);

    // Calls from now on work on this stream. The memory is of the one that the pass was made on,
    // which waits for the others once it is worked on again.
    void work_on(const Stream& stream);
    void work_at_home() { work_on(home_); }

    // Bytes that the first evaluation takes, and the products with a block of directions.
    std::size_t bytes() const { return plan_.values.bytes(1); }
    std::size_t tangent_bytes(index directions) const { return plan_.tangents.bytes(directions); }

    // Where the rows come from: `indices` picks them from a larger set, null takes them in order.
    struct Batch {
        const T* x;
        Targets<T> targets;
        const std::int64_t* indices;
    };

    // Fills values, and gradients unless the level is `value`. `gradient` is (n), null at level
    // `value`. Rows weigh weight / rows. The arrays must live as long as products are asked for.
    void evaluate(const Batch& batch, const T* theta, T* buffers, bool update_buffers,
                  double weight, T* gradient, bool accumulate);
    double loss() const;  // weight times the mean over rows
    const T* output() const { return layers_->output->value; }

    // product (directions, n) (+)= H v for v (directions, n).
    void product(const T* v, index directions, T* product, bool accumulate);

    // The network's four methods as linear maps, for a pass without a loss. `xt`, `dx` and `dxt`
    // are null unless the pass was made with `input_gradient`.
    void backward(const T* dy, T* gradient, T* dx);
    void forward_tangent(const T* v, const T* xt, index directions, T* yt);
    void backward_tangent(const T* dyt, index directions, T* product, T* dxt);

   private:
    // Runs f, which stays within rows unless a layer says otherwise, on the team.
    template <class F>
    void over_rows(const Context& context, F&& f) const {
        if (plan_.couples_rows) {
            f(context);
        } else {
            slab_by_slab(context, plan_.rows, f);
        }
    }
    Buffer allocate(std::size_t bytes) const;
    void reserve_tangents(index directions);
    void queue_product(const Stream& stream, const T* v, index directions, T* product,
                       bool accumulate);
    void queue_evaluation(const Stream& stream, const Batch& batch,
                          const Targets<T>& targets) const;
    bool can_record() const {
        return stream_.native == home_.native && Recording::possible(stream_);
    }
    void gather(const Context& context, const Batch& batch) const;
    void run_jobs(const Context& context, index directions) const;
    void copy(T* to, const T* from, index count) const;

    // What the work depends on: addresses, and what else is given by value.
    using Evaluation = std::tuple<const T*, const std::int32_t*, const T*, const T*, const T*,
                                  const T*, bool, bool, double, bool>;
    using Product = std::tuple<index, bool, const void*>;

    Stream home_, stream_;
    NetworkSpec spec_;
    Plan<T> plan_;
    Signal<T> input_;
    T* gathered_ = nullptr;
    std::int32_t* gathered_labels_ = nullptr;
    T* gathered_targets_ = nullptr;
    std::unique_ptr<Layer<T>> layers_;
    std::unique_ptr<Loss<T>> loss_;
    Buffer values_;
    std::shared_ptr<Scratch> scratch_;
    void* placed_at_ = nullptr;
    index placed_for_ = 0;
    double weight_ = 1.0, work_ = 0.0;
    // What is asked for again is recorded: many small calls take longer than they run. The buffers
    // hold what comes from another place each time: the indices, v and the product.
    Buffer indices_, vectors_;
    Repeated<Evaluation> evaluations_;
    Repeated<Product> products_;
};

SP_END
