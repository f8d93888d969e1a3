#include "optim/tables_gpu.cuh"

#include <algorithm>
#include <cstring>
#include <iterator>

SP_BEGIN

namespace optim_cuda {

namespace {

struct Packet {
    std::uint32_t word[960];  // arguments are at most 4 KB
};
__global__ void __launch_bounds__(threads)
    write_kernel(const __grid_constant__ Packet packet, std::uint32_t* to, int count) {
    for (int i = int(threadIdx.x); i < count; i += threads) to[i] = packet.word[i];
}

// Arrays in one piece of memory: first those that the host writes, then those it leaves alone.
class Image {
   public:
    template <class X>
    std::size_t add(const std::vector<X>& x) {
        const std::size_t at = bytes_.size();
        bytes_.resize(padded(at + x.size() * sizeof(X)));
        if (!x.empty()) std::memcpy(bytes_.data() + at, x.data(), x.size() * sizeof(X));
        return at;
    }
    template <class X>
    std::size_t leave(std::size_t count) {
        const std::size_t at = bytes_.size() + left_;
        left_ += padded(count * sizeof(X));
        return at;
    }
    const std::vector<char>& bytes() const { return bytes_; }
    std::size_t total() const { return bytes_.size() + left_; }

   private:
    static std::size_t padded(std::size_t n) { return (n + 15) / 16 * 16; }
    std::vector<char> bytes_;
    std::size_t left_ = 0;
};

// Whether all arrays lie alike, in the type that they are worked on.
bool is_plain(const Item& item) {
    const Dtype dtype = item.wide ? Dtype::f64 : Dtype::f32;
    const auto fits = [&](const Array& a) { return a.strides < 0 && a.dtype == dtype; };
    bool plain = !on_matrices(item.rule) && !item.copy.data && !item.remainder.data &&
                 fits(item.p) && fits(item.gradient) && (!item.ema.data || fits(item.ema));
    for (int k = 0; k < states_of[item.rule]; ++k) plain = plain && fits(item.state[k]);
    return plain;
}

template <class X>
bool same(const std::vector<X>& a, const std::vector<X>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(X)) == 0);
}

}  // namespace

void write(cudaStream_t queue, void* device, const void* host, std::size_t bytes) {
    const auto* from = static_cast<const char*>(host);
    auto* to = static_cast<char*>(device);
    while (bytes > 0) {
        Packet packet;
        const std::size_t now = std::min(bytes, sizeof packet);
        std::memcpy(packet.word, from, now);
        write_kernel<<<1, threads, 0, queue>>>(packet, reinterpret_cast<std::uint32_t*>(to),
                                               int(now / sizeof(std::uint32_t)));
        check(cudaGetLastError(), "write");
        from += now;
        to += now;
        bytes -= now;
    }
}

void Tables::lay_out(cudaStream_t queue, const std::vector<Tensor>& tensors, std::size_t rows) {
    Image image;
    std::vector<Item> items;
    std::vector<index> numbers;
    for (const Tensor& t : tensors) {
        const auto place = [&](const index* n) {
            if (n == nullptr) return -1;
            const auto at = int(numbers.size());
            numbers.insert(numbers.end(), n, n + t.axes);
            return at;
        };
        const auto array = [&](const Strided& a) {
            return Array{a.data, place(a.strides), a.dtype};
        };
        Item item{};
        item.size = t.size;
        item.id = t.id;
        item.p = array(t.p);
        item.gradient = array(t.gradient);
        item.ema = array(t.ema);
        item.copy = array(t.copy);
        item.remainder = array(t.remainder);
        for (int k = 0; k < max_states; ++k) item.state[k] = array(t.state[k]);
        item.rule = t.rule;
        item.hyper = t.hyper;
        item.axes = t.axes;
        item.extents = place(t.extents);
        item.logical = place(t.logical);
        item.wide = t.p.dtype == Dtype::f64;
        items.push_back(item);
    }
    // One group for each rule and type, but for rules on matrices, which go one by one.
    groups_.clear();
    int places[rules][4];
    for (auto& place : places) std::fill(std::begin(place), std::end(place), -1);
    std::vector<int> all;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        if (tensors[i].size == 0) continue;
        all.push_back(int(i));
        const int rule = tensors[i].rule;
        const bool wide = items[i].wide, plain = is_plain(items[i]);
        int& place = places[rule][2 * plain + wide];
        if (place < 0 || on_matrices(rule)) {
            place = int(groups_.size());
            groups_.push_back({rule, wide, plain, {}, {}, {}});
        }
        groups_[place].tensors.push_back(int(i));
    }
    // Places within the memory stand for addresses until there is memory.
    const auto pieces = [&](const std::vector<int>& which, index each) {
        std::vector<index> first;
        index total = 0;
        for (int i : which) {
            first.push_back(total);
            total += (tensors[i].size + each - 1) / each;
        }
        const std::size_t list = image.add(which), firsts = image.add(first);
        return Pieces{reinterpret_cast<const int*>(list), reinterpret_cast<const index*>(firsts),
                      int(which.size()), total};
    };
    slabs_ = pieces(all, slab);
    index sums = slabs_.total;
    for (Group& group : groups_) {
        group.chunks = pieces(group.tensors, chunk);
        group.slabs = {};
        if (needs_norms[group.rule]) {
            group.slabs = pieces(group.tensors, slab);
            sums = std::max(sums, 2 * group.slabs.total);
        }
    }
    const std::size_t n = tensors.size();
    const std::size_t items_at = image.add(items), numbers_at = image.add(numbers);
    const std::size_t gradients_at = image.leave<void*>(n);
    const std::size_t hyper_at = image.leave<double>(rows * max_hyper);
    const std::size_t rates_at = image.leave<Rate>(rows);
    const std::size_t blocks_at = image.leave<Block>(2 * n);
    const std::size_t sums_at = image.leave<double>(std::size_t(sums));

    if (image.total() > memory_.bytes()) memory_ = Memory(image.total());
    char* const base = memory_.data();
    const auto at = [base](Pieces& p) {
        const auto list = reinterpret_cast<std::size_t>(p.tensors);
        const auto firsts = reinterpret_cast<std::size_t>(p.first);
        p.tensors = reinterpret_cast<const int*>(base + list);
        p.first = reinterpret_cast<const index*>(base + firsts);
    };
    at(slabs_);
    for (Group& group : groups_) {
        at(group.chunks);
        at(group.slabs);
    }
    device_.items = reinterpret_cast<const Item*>(base + items_at);
    device_.numbers = reinterpret_cast<const index*>(base + numbers_at);
    device_.gradients = reinterpret_cast<void* const*>(base + gradients_at);
    device_.hyper = reinterpret_cast<const double*>(base + hyper_at);
    device_.rates = reinterpret_cast<const Rate*>(base + rates_at);
    device_.blocks = reinterpret_cast<Block*>(base + blocks_at);
    device_.first_blocks = device_.blocks + n;
    device_.sums = reinterpret_cast<double*>(base + sums_at);
    device_.count = int(n);
    write(queue, base, image.bytes().data(), image.bytes().size());
}

namespace {

template <class X>
void send(cudaStream_t queue, const void* device, const std::vector<X>& now, std::vector<X>& told) {
    if (same(now, told)) return;
    told.clear();
    write(queue, const_cast<void*>(device), now.data(), now.size() * sizeof(X));
    told = now;
}

}  // namespace

void Tables::tell(cudaStream_t queue, const std::vector<Tensor>& tensors, index layout,
                  const std::vector<double>& hyper, const std::vector<Scalar>& rates) {
    const std::size_t rows = hyper.size() / max_hyper;
    if (layout != layout_ || rows != rows_) {
        layout_ = -1;
        gradients_.clear();
        hyper_.clear();
        rates_.clear();
        lay_out(queue, tensors, rows);
        layout_ = layout;
        rows_ = rows;
    }
    new_gradients_.clear();
    for (const Tensor& t : tensors) new_gradients_.push_back(t.gradient.data);
    new_rates_.assign(rows, Rate{nullptr, 0});
    for (std::size_t r = 0; r < std::min(rows, rates.size()); ++r) {
        new_rates_[r] = {rates[r].data, rates[r].wide};
    }
    send(queue, device_.gradients, new_gradients_, gradients_);
    send(queue, device_.hyper, hyper, hyper_);
    send(queue, device_.rates, new_rates_, rates_);
}

}  // namespace optim_cuda

SP_END
