// Losses bound to a network's outputs.
#include <stdexcept>

#include "nn/loss.hpp"

SP_BEGIN

namespace {

template <class T>
class BoundLoss : public Loss<T> {
   protected:
    BoundLoss(Plan<T>& plan, Signal<T>* output) : plan_(plan), z_(*output) {
        plan.values.add(this->row_loss, plan.rows);
    }
    Plan<T>& plan_;
    Signal<T>& z_;
};

template <class T>
class CrossEntropy final : public BoundLoss<T> {
   public:
    CrossEntropy(Plan<T>& plan, Signal<T>* output) : BoundLoss<T>(plan, output) {
        plan.values.add(p_, plan.rows * output->columns);
    }
    void forward(const Context& context, const Targets<T>& targets, T scale) override {
        for_rows<rows::CrossEntropy<T>>(context,
                                        {this->z_.value, targets.labels, p_, this->z_.gradient,
                                         this->row_loss, this->z_.columns, scale},
                                        1, this->plan_.rows);
    }
    void tangent(const Context& context, index directions, T scale) override {
        for_rows<rows::CrossEntropyTangent<T>>(context,
                                               {p_, this->z_.tangent, this->z_.gradient_tangent,
                                                this->plan_.rows, this->z_.columns, scale},
                                               directions, this->plan_.rows);
    }

   private:
    T* p_ = nullptr;
};

template <class T>
class MeanSquaredError final : public BoundLoss<T> {
   public:
    MeanSquaredError(Plan<T>& plan, Signal<T>* output) : BoundLoss<T>(plan, output) {}
    void forward(const Context& context, const Targets<T>& targets, T scale) override {
        for_rows<rows::SquaredError<T>>(context,
                                        {this->z_.value, targets.values, this->z_.gradient,
                                         this->row_loss, this->z_.columns, scale},
                                        1, this->plan_.rows);
    }
    void tangent(const Context& context, index directions, T scale) override {
        for_rows<rows::SquaredErrorTangent<T>>(context,
                                               {this->z_.tangent, this->z_.gradient_tangent,
                                                this->plan_.rows, this->z_.columns, scale},
                                               directions, this->plan_.rows);
    }
};

}  // namespace

template <class T>
std::unique_ptr<Loss<T>> make_loss(const std::string& kind, Plan<T>& plan, Signal<T>* output) {
    if (kind == "cross_entropy") return std::make_unique<CrossEntropy<T>>(plan, output);
    if (kind == "mean_squared_error") return std::make_unique<MeanSquaredError<T>>(plan, output);
    throw std::invalid_argument("loss: expected cross_entropy or mean_squared_error, got " + kind);
}
template std::unique_ptr<Loss<float>> make_loss(const std::string&, Plan<float>&, Signal<float>*);
template std::unique_ptr<Loss<double>> make_loss(const std::string&, Plan<double>&,
                                                 Signal<double>*);

SP_END
