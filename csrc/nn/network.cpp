#include "nn/network.hpp"

#include <algorithm>
#include <numeric>

#include "ops/gather.hpp"

SP_BEGIN

namespace {

template <class T>
class Sequential final : public Layer<T> {
   public:
    Sequential(const LayerSpec& spec, Plan<T>& plan, Signal<T>* input) {
        this->output = input;
        for (const LayerSpec& child : spec.children) {
            layers_.push_back(make_layer(child, plan, this->output));
            this->output = layers_.back()->output;
        }
    }
    void forward(const Context& context) override {
        for (auto& layer : layers_) layer->forward(context);
    }
    void backward(const Context& context) override {
        for (auto it = layers_.rbegin(); it != layers_.rend(); ++it) (*it)->backward(context);
    }
    void forward_tangent(const Context& context, index directions) override {
        for (auto& layer : layers_) layer->forward_tangent(context, directions);
    }
    void backward_tangent(const Context& context, index directions) override {
        for (auto it = layers_.rbegin(); it != layers_.rend(); ++it) {
            (*it)->backward_tangent(context, directions);
        }
    }

   private:
    std::vector<std::unique_ptr<Layer<T>>> layers_;
};

}  // namespace

template <class T>
std::unique_ptr<Layer<T>> make_layer(const LayerSpec& spec, Plan<T>& plan, Signal<T>* input) {
    if (spec.kind == "sequential") return std::make_unique<Sequential<T>>(spec, plan, input);
    if (spec.kind == "linear") return make_linear(spec, plan, input);
    if (spec.kind == "batch_norm") return make_batch_norm(spec, plan, input);
    return make_activation(spec, plan, input);
}

template <class T>
Pass<T>::Pass(const Stream& stream, const NetworkSpec& spec, index rows, Level level, bool frozen,
              bool input_gradient, std::shared_ptr<Scratch> scratch)
    : home_(stream), stream_(stream), spec_(spec), scratch_(std::move(scratch)) {
    plan_.rows = rows;
    plan_.level = level;
    plan_.frozen = frozen;
    plan_.input_gradient = input_gradient;
    plan_.theta.columns = spec.parameters;
    input_.columns = spec.inputs;
    if (input_gradient) {
        plan_.values.add(input_.gradient, rows * spec.inputs);
        plan_.tangents.add(input_.tangent, rows * spec.inputs);
        plan_.tangents.add(input_.gradient_tangent, rows * spec.inputs);
    }
    plan_.values.add(gathered_, rows * spec.inputs);
    plan_.values.add(gathered_labels_, rows);
    plan_.values.add(gathered_targets_,
                     spec.loss == "mean_squared_error" ? rows * spec.outputs : 0);
    layers_ = make_layer(spec.layers, plan_, &input_);
    if (!spec.loss.empty()) loss_ = make_loss(spec.loss, plan_, layers_->output);
    work_ = cost::multiply_add * double(rows) * double(spec.parameters + spec.inputs);
    std::stable_sort(plan_.jobs.begin(), plan_.jobs.end(),
                     [](const Job& a, const Job& b) { return a.work > b.work; });
}

template <class T>
void Pass<T>::evaluate(const Batch& batch, const T* theta, T* buffers, bool update_buffers,
                       double weight, T* gradient, bool accumulate) {
    if (values_.data() == nullptr) {
        values_ = allocate(bytes());
        plan_.values.place(values_.data(), 1);
    }
    products_.forget();
    weight_ = weight;
    plan_.theta.value = const_cast<T*>(theta);  // written to by nobody
    plan_.theta.gradient = gradient;
    plan_.buffers = buffers;
    plan_.update_buffers = update_buffers;
    plan_.accumulate = accumulate;
    input_.value = batch.indices ? gathered_ : const_cast<T*>(batch.x);
    Targets<T> targets = batch.targets;
    if (batch.indices && targets.labels) targets.labels = gathered_labels_;
    if (batch.indices && targets.values) targets.values = gathered_targets_;
    const Evaluation key{batch.x,  batch.targets.labels, batch.targets.values, theta,  buffers,
                         gradient, batch.indices,        update_buffers,       weight, accumulate};
    if (can_record() && evaluations_.again(key)) {
        Batch own = batch;
        if (batch.indices) {
            const std::size_t bytes = plan_.rows * sizeof(std::int64_t);
            if (indices_.data() == nullptr) indices_ = allocate(bytes);
            copy_on_device(stream_, indices_.data(), batch.indices, bytes);
            own.indices = static_cast<const std::int64_t*>(indices_.data());
        }
        const auto work = [&](const Stream& stream) { queue_evaluation(stream, own, targets); };
        if (evaluations_.replay(stream_, key, work)) return;
    }
    queue_evaluation(stream_, batch, targets);
    plan_.first = false;
}

template <class T>
void Pass<T>::queue_evaluation(const Stream& stream, const Batch& batch,
                               const Targets<T>& targets) const {
    const auto within_rows = [&](const Context& context) {
        if (batch.indices) gather(context, batch);
        layers_->forward(context);
        if (loss_) loss_->forward(context, targets, T(weight_ / double(plan_.rows)));
        if (loss_ && plan_.level != Level::value) layers_->backward(context);
    };
    run(stream, (plan_.level == Level::value ? 1.0 : 3.0) * work_, [&](const Context& context) {
        over_rows(context, within_rows);
        if (!loss_ || plan_.level == Level::value) return;
        context.sync();  // weight gradients sum over all rows
        run_jobs(context, 0);
    });
}

template <class T>
void Pass<T>::gather(const Context& context, const Batch& batch) const {
    const auto pick = [&](const auto* from, auto* to, index columns) {
        if (from) {
            gather_rows(context, plan_.rows, columns * index(sizeof *to), from, batch.indices, to);
        }
    };
    pick(batch.x, gathered_, spec_.inputs);
    pick(batch.targets.labels, gathered_labels_, 1);
    pick(batch.targets.values, gathered_targets_, spec_.outputs);
}

template <class T>
double Pass<T>::loss() const {
    std::vector<double> rows(plan_.rows);
    copy_to_host(stream_, rows.data(), loss_->row_loss, rows.size() * sizeof(double));
    return std::accumulate(rows.begin(), rows.end(), 0.0) * (weight_ / double(plan_.rows));
}

template <class T>
void Pass<T>::work_on(const Stream& stream) {
    home_.wait_for(stream_);
    stream_ = stream;
    stream_.wait_for(home_);
}

template <class T>
Buffer Pass<T>::allocate(std::size_t bytes) const {
    Buffer buffer(home_, bytes);
    stream_.wait_for(home_);
    return buffer;
}

template <class T>
void Pass<T>::reserve_tangents(index directions) {
    const std::size_t bytes = plan_.tangents.bytes(directions);
    if (scratch_->buffer.bytes() < bytes) scratch_->buffer = allocate(bytes);
    if (placed_at_ == scratch_->buffer.data() && placed_for_ == directions) return;
    placed_at_ = scratch_->buffer.data();
    placed_for_ = directions;
    plan_.tangents.place(placed_at_, directions);
}

// Directions 0: the gradient. Members take jobs in turn, the largest first, and one direction of a
// job at a time; one member alone takes all of them at once.
template <class T>
void Pass<T>::run_jobs(const Context& context, index directions) const {
    const index jobs = static_cast<index>(plan_.jobs.size());
    const index each = context.size == 1 ? directions : 1;
    const index count = directions == 0 ? jobs : jobs * (directions / each);
    for (index i = context.rank; i < count; i += context.size) {
        const Job& job = plan_.jobs[i % jobs];
        if (directions == 0) {
            job.gradient(context);
        } else {
            job.product(context, {i / jobs * each, (i / jobs + 1) * each});
        }
    }
}

template <class T>
void Pass<T>::product(const T* v, index directions, T* product, bool accumulate) {
    reserve_tangents(directions);
    constexpr index most = index(1) << 22;  // numbers, whose copies take no time yet
    const index count = directions * spec_.parameters;
    const Product key{directions, accumulate, placed_at_};
    if (count <= most && can_record() && products_.again(key)) {
        if (!products_.has(key)) vectors_ = allocate(2 * count * sizeof(T));
        T* const own = static_cast<T*>(vectors_.data());
        copy(own, v, count);
        if (accumulate) copy(own + count, product, count);
        const auto work = [&](const Stream& stream) {
            queue_product(stream, own, directions, own + count, accumulate);
        };
        if (products_.replay(stream_, key, work)) return copy(product, own + count, count);
    }
    queue_product(stream_, v, directions, product, accumulate);
}

template <class T>
void Pass<T>::queue_product(const Stream& stream, const T* v, index directions, T* product,
                            bool accumulate) {
    plan_.theta.tangent = const_cast<T*>(v);
    plan_.theta.gradient_tangent = product;
    plan_.accumulate = accumulate;
    run(stream, 6.0 * double(directions) * work_, [&](const Context& context) {
        over_rows(context, [&](const Context& part) {
            layers_->forward_tangent(part, directions);
            loss_->tangent(part, directions, T(weight_ / double(plan_.rows)));
            layers_->backward_tangent(part, directions);
        });
        context.sync();
        run_jobs(context, directions);
    });
}

template <class T>
void Pass<T>::copy(T* to, const T* from, index count) const {
    if (to && from) copy_on_device(stream_, to, from, count * sizeof(T));
}

template <class T>
void Pass<T>::backward(const T* dy, T* gradient, T* dx) {
    const Signal<T>& y = *layers_->output;
    plan_.theta.gradient = gradient;
    plan_.accumulate = false;
    copy(y.gradient, dy, plan_.rows * y.columns);
    run(stream_, 2.0 * work_, [&](const Context& context) {
        layers_->backward(context);
        context.sync();
        run_jobs(context, 0);
    });
    copy(dx, input_.gradient, plan_.rows * input_.columns);
}

template <class T>
void Pass<T>::forward_tangent(const T* v, const T* xt, index directions, T* yt) {
    reserve_tangents(directions);
    const Signal<T>& y = *layers_->output;
    plan_.theta.tangent = const_cast<T*>(v);
    copy(input_.tangent, xt, directions * plan_.rows * input_.columns);
    run(stream_, 2.0 * double(directions) * work_,
        [&](const Context& context) { layers_->forward_tangent(context, directions); });
    copy(yt, y.tangent, directions * plan_.rows * y.columns);
}

template <class T>
void Pass<T>::backward_tangent(const T* dyt, index directions, T* product, T* dxt) {
    const Signal<T>& y = *layers_->output;
    plan_.theta.gradient_tangent = product;
    plan_.accumulate = false;
    copy(y.gradient_tangent, dyt, directions * plan_.rows * y.columns);
    run(stream_, 4.0 * double(directions) * work_, [&](const Context& context) {
        layers_->backward_tangent(context, directions);
        context.sync();
        run_jobs(context, directions);
    });
    copy(dxt, input_.gradient_tangent, directions * plan_.rows * input_.columns);
}

template class Pass<float>;
template class Pass<double>;

SP_END
