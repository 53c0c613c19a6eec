// Rows of a table by number, and the sums that flow back to each: in the order of their numbers, whoever computes them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace jclip {

// Which of `count` entries name each of `rows` rows: entry `order[i]` for i from `first[row]` to `first[row + 1]`.
struct Occurrences {
    std::vector<int64_t> first, order;

    Occurrences(const int32_t* index, int64_t count, int64_t rows) : first(rows + 1, 0), order(count) {
        for (int64_t i = 0; i < count; i++) first[index[i] + 1]++;
        for (int64_t row = 0; row < rows; row++) first[row + 1] += first[row];
        std::vector<int64_t> next(first.begin(), first.end() - 1);
        for (int64_t i = 0; i < count; i++) order[next[index[i]]++] = i;
    }
};

inline void rows_forward(const float* table, const int32_t* index, float* out, int64_t count, int64_t D) {
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) std::copy(table + index[i] * D, table + (index[i] + 1) * D, out + i * D);
}

// grad (count, D) → (rows, D): of each row the sum of what was taken from it.
inline void rows_backward(const float* grad, const int32_t* index, float* grad_table, int64_t count, int64_t rows,
                          int64_t D) {
    const Occurrences of(index, count, rows);
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        float* to = grad_table + row * D;
        std::fill(to, to + D, 0.0f);
        for (int64_t i = of.first[row]; i < of.first[row + 1]; i++) {
            const float* from = grad + of.order[i] * D;
            for (int64_t c = 0; c < D; c++) to[c] += from[c];
        }
    }
}

}  // namespace jclip
