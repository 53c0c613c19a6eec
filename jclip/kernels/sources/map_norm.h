// Batch norm of channels-last maps, R rows of C channels, and what follows it in a ResNet: y = [relu](norm(x) + residual).
// Maps are float or bfloat16, statistics, parameters and sums are float. Sums are of blocks of rows, which stay in the cache,
// then of blocks in float64, thread by thread in order.
#pragma once
#include <omp.h>
#include <type_traits>
#include "onednn.h"

namespace jclip {

inline int64_t rows_of_block(int64_t C) { return std::max<int64_t>(32, 8192 / C); }

// `work(thread, first, end)` for each block of rows, those of a thread one after the other.
template <class F>
inline void for_blocks(int64_t R, int64_t C, F work) {
    const int64_t rows = rows_of_block(C), blocks = (R + rows - 1) / rows;
    #pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; block++)
        work(omp_get_thread_num(), block * rows, std::min(R, (block + 1) * rows));
}

// How many values of a channel were seen, their mean and their summed squares from it.
struct Moments {
    double count = 0;
    std::vector<double> mean, squares;

    explicit Moments(int64_t C) : mean(C, 0.0), squares(C, 0.0) {}

    // Chan, Golub & LeVeque's sum of two such.
    template <class M>
    void add(double more, const M* other_mean, const M* other_squares) {
        if (more == 0) return;
        const double total = count + more, share = more / total, weight = count * share;
        for (size_t c = 0; c < mean.size(); c++) {
            const double away = other_mean[c] - mean[c];
            mean[c] += away * share;
            squares[c] += other_squares[c] + away * away * weight;
        }
        count = total;
    }
};

template <class X>
inline void add_row(const X* __restrict__ x, float* __restrict__ sum, int64_t C) {
    for (int64_t c = 0; c < C; c++) sum[c] += widen(x[c]);
}

template <class X>
inline void add_squares(const X* __restrict__ x, const float* __restrict__ mean, float* __restrict__ sum, int64_t C) {
    for (int64_t c = 0; c < C; c++) sum[c] += (widen(x[c]) - mean[c]) * (widen(x[c]) - mean[c]);
}

template <class X>
void channel_moments(const X* x, int64_t R, int64_t C, float* mean, float* variance) {
    const int threads = omp_get_max_threads();
    std::vector<Moments> parts(threads, Moments(C));
    std::vector<float> sums(size_t(threads) * 2 * C);
    for_blocks(R, C, [&](int thread, int64_t first, int64_t end) {
        float *sum = sums.data() + size_t(thread) * 2 * C, *squares = sum + C;
        std::fill(sum, sum + 2 * C, 0.0f);
        for (int64_t r = first; r < end; r++) add_row(x + r * C, sum, C);
        for (int64_t c = 0; c < C; c++) sum[c] /= float(end - first);
        for (int64_t r = first; r < end; r++) add_squares(x + r * C, sum, squares, C);
        parts[thread].add(double(end - first), sum, squares);
    });
    Moments all(C);
    for (const Moments& part : parts) all.add(part.count, part.mean.data(), part.squares.data());
    for (int64_t c = 0; c < C; c++) {
        mean[c] = float(all.mean[c]);
        variance[c] = float(all.squares[c] / double(R));
    }
}

template <class X, bool ADDED, bool RELU>
inline void norm_row(const X* x, const float* mean, const float* factor, const float* shift, const X* added, X* y, int64_t C) {
    #pragma GCC ivdep
    for (int64_t c = 0; c < C; c++) {
        float made = (widen(x[c]) - mean[c]) * factor[c] + shift[c];
        if (ADDED) made += widen(added[c]);
        narrow(RELU ? std::max(made, 0.0f) : made, y[c]);
    }
}

template <class X, bool ADDED, bool RELU>
void norm_rows(const X* x, const float* mean, const float* factor, const float* shift, const X* added, X* y, int64_t R,
               int64_t C) {
    for_blocks(R, C, [&](int, int64_t first, int64_t end) {
        for (int64_t i = first * C; i < end * C; i += C)
            norm_row<X, ADDED, RELU>(x + i, mean, factor, shift, ADDED ? added + i : nullptr, y + i, C);
    });
}

inline std::vector<float> norm_factors(const float* weight, const float* variance, int64_t C, double eps) {
    std::vector<float> factor(C);
    for (int64_t c = 0; c < C; c++) factor[c] = float((weight ? weight[c] : 1.0f) / std::sqrt(double(variance[c]) + eps));
    return factor;
}

// `own_mean`, `own_variance`: the statistics to take; none: the batch's. Those taken are handed out as well.
template <class X>
void map_norm_forward(const X* x, const float* weight, const float* bias, const float* own_mean, const float* own_variance,
                      const void* residual, X* y, float* mean, float* variance, int64_t R, int64_t C, double eps, double relu) {
    if (own_mean) {
        std::copy(own_mean, own_mean + C, mean);
        std::copy(own_variance, own_variance + C, variance);
    } else {
        channel_moments(x, R, C, mean, variance);
    }
    const std::vector<float> factor = norm_factors(weight, variance, C, eps);
    const X* added = static_cast<const X*>(residual);
    const auto rows = added ? (relu != 0 ? norm_rows<X, true, true> : norm_rows<X, true, false>)
                            : (relu != 0 ? norm_rows<X, false, true> : norm_rows<X, false, false>);
    rows(x, mean, factor.data(), bias, added, y, R, C);
}

// What lets a gradient through: everything, where y is positive, or where the norm of x is.
enum Mask { everything, where_y, where_norm };

// What the backward pass of a norm reads: x and, with a residual, y; the gradients of y's readers.
template <class X>
struct NormInputs {
    const X *x, *y, *g0, *g1, *g2;
    const float *mean, *factor, *bias;

    NormInputs row(int64_t start) const {
        const auto at = [=](const X* p) { return p ? p + start : nullptr; };
        return {at(x), at(y), at(g0), at(g1), at(g2), mean, factor, bias};
    }
};

// What flows to norm(x) + residual at a channel, `away` = x - mean: the readers' gradients together, where ReLU let it through.
template <class X, int MASK, int READERS>
inline float flowing(const NormInputs<X>& in, int64_t c, float away) {
    float g = widen(in.g0[c]);
    if (READERS > 1) g += widen(in.g1[c]);
    if (READERS > 2) g += widen(in.g2[c]);
    if (MASK == where_y) g = widen(in.y[c]) > 0.0f ? g : 0.0f;
    if (MASK == where_norm) g = away * in.factor[c] + in.bias[c] > 0.0f ? g : 0.0f;
    return g;
}

// The rows' sums of g and of g (x - mean); g itself into `residual`, if there is one.
template <class X, int MASK, int READERS>
inline void add_products(const NormInputs<X> in, float* sum, float* inner, X* residual, int64_t C) {
    #pragma GCC ivdep
    for (int64_t c = 0; c < C; c++) {
        const float away = widen(in.x[c]) - in.mean[c], g = flowing<X, MASK, READERS>(in, c, away);
        if (residual) narrow(g, residual[c]);
        sum[c] += g;
        inner[c] += g * away;
    }
}

// factor (g - a - (x - mean) n)
template <class X, int MASK, int READERS>
inline void input_row(const NormInputs<X> in, const float* a, const float* n, X* grad_x, int64_t C) {
    #pragma GCC ivdep
    for (int64_t c = 0; c < C; c++) {
        const float away = widen(in.x[c]) - in.mean[c], g = flowing<X, MASK, READERS>(in, c, away);
        narrow(in.factor[c] * (g - a[c] - away * n[c]), grad_x[c]);
    }
}

// What a backward pass hands out.
template <class X>
struct NormOutputs {
    X* x;
    float *weight, *bias;
    X* residual;
};

// dx = w f (g - mean(g) - n mean(g n)) with n = (x - mean) f and f = 1 / sqrt(variance + eps), with statistics that are not
// the batch's (`given`) dx = w f g; dw = sum g n, db = sum g.
template <class X, int MASK, int READERS>
void norm_gradients(const NormInputs<X>& in, const NormOutputs<X>& out, const std::vector<float>& f, int64_t R, int64_t C,
                    bool given) {
    const int threads = omp_get_max_threads();
    std::vector<double> totals(size_t(threads) * 2 * C, 0.0);
    std::vector<float> buffers(size_t(threads) * 2 * C);
    for_blocks(R, C, [&](int thread, int64_t first, int64_t end) {
        float* sums = buffers.data() + size_t(thread) * 2 * C;
        std::fill(sums, sums + 2 * C, 0.0f);
        for (int64_t r = first; r < end; r++)
            add_products<X, MASK, READERS>(in.row(r * C), sums, sums + C, out.residual ? out.residual + r * C : nullptr, C);
        double* total = totals.data() + size_t(thread) * 2 * C;
        for (int64_t c = 0; c < 2 * C; c++) total[c] += sums[c];
    });
    std::vector<float> a(C, 0.0f), n(C, 0.0f);
    for (int64_t c = 0; c < C; c++) {
        double sum = 0.0, inner = 0.0;
        for (int t = 0; t < threads; t++) {
            sum += totals[size_t(t) * 2 * C + c];
            inner += totals[size_t(t) * 2 * C + C + c];
        }
        out.weight[c] = float(inner * f[c]);
        out.bias[c] = float(sum);
        if (given) continue;
        a[c] = float(sum / R);
        n[c] = float(inner / R * f[c] * f[c]);
    }
    NormInputs<X> masked = in;
    masked.g0 = out.residual;
    for_blocks(R, C, [&](int, int64_t first, int64_t end) {
        for (int64_t r = first; r < end; r++) {
            if (out.residual) input_row<X, everything, 1>(masked.row(r * C), a.data(), n.data(), out.x + r * C, C);
            else input_row<X, MASK, READERS>(in.row(r * C), a.data(), n.data(), out.x + r * C, C);
        }
    });
}

template <class X>
void map_norm_gradients(const NormInputs<X>& in, const NormOutputs<X>& out, const float* variance, int64_t R, int64_t C,
                        double eps, bool relu, bool given) {
    const std::vector<float> f = norm_factors(nullptr, variance, C, eps);
    const int readers = in.g2 ? 3 : in.g1 ? 2 : 1, mask = !relu ? everything : in.y ? where_y : where_norm;
    const auto with = [&](auto mask, auto readers) {
        norm_gradients<X, decltype(mask)::value, decltype(readers)::value>(in, out, f, R, C, given);
    };
    const auto masked = [&](auto readers) {
        if (mask == everything) with(std::integral_constant<int, everything>(), readers);
        else if (mask == where_y) with(std::integral_constant<int, where_y>(), readers);
        else with(std::integral_constant<int, where_norm>(), readers);
    };
    if (readers == 1) masked(std::integral_constant<int, 1>());
    else if (readers == 2) masked(std::integral_constant<int, 2>());
    else masked(std::integral_constant<int, 3>());
}

template <class X>
void map_norm_backward(const X* x, const float* weight, const float* bias, const float* mean, const float* variance,
                       const X* g0, const void* g1, const void* g2, X* grad_x, float* grad_weight, float* grad_bias,
                       int64_t R, int64_t C, double eps, double relu, double given) {
    const std::vector<float> factor = norm_factors(weight, variance, C, eps);
    const NormInputs<X> in{x, nullptr, g0, static_cast<const X*>(g1), static_cast<const X*>(g2), mean, factor.data(), bias};
    map_norm_gradients<X>(in, {grad_x, grad_weight, grad_bias, nullptr}, variance, R, C, eps, relu != 0, given != 0);
}

// The same with a residual.
template <class X>
void map_norm_added_backward(const X* x, const float* weight, const float* bias, const float* mean, const float* variance,
                             const X* y, const X* g0, const void* g1, const void* g2, X* grad_x, float* grad_weight,
                             float* grad_bias, X* grad_residual, int64_t R, int64_t C, double eps, double relu, double given) {
    const std::vector<float> factor = norm_factors(weight, variance, C, eps);
    const NormInputs<X> in{x, y, g0, static_cast<const X*>(g1), static_cast<const X*>(g2), mean, factor.data(), bias};
    map_norm_gradients<X>(in, {grad_x, grad_weight, grad_bias, grad_residual}, variance, R, C, eps, relu != 0, given != 0);
}

}  // namespace jclip
