// One iteration of a method for z = f(z), of some rows of a batch: what is left, and the next iterates. Nothing here
// knows of the map. Vectors are of type R, their inner products are summed up in float64, block by block.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#define SIDE_BY_SIDE _Pragma("omp simd")

constexpr int64_t BLOCK = 512;
constexpr double TINY = 1e-200;

struct Iteration {
    const void *z, *fz, *z_before, *fz_before;  // (b, n) each; before the first iteration there is none before
    void *next;                                 // (b, n)
    void *residuals, *images;                   // rings of vectors (b, memory, n)
    double *gram;                               // (b, memory, memory)
    double *norms;                              // (b, 2), of f(z) - z and of f(z)
    int64_t *starts;                            // (b,), Broyden's first step that counts
    int64_t n, memory, count, slot;             // slot: where the newest vector is or goes, of count
    double weight, floor;                       // of f(z) in a step without history; of the scaled diagonal
};

// Elements side by side: 64 bytes of them.
template <class R> struct Lanes {
    typedef R Type __attribute__((vector_size(64)));
    typedef R Half __attribute__((vector_size(32)));
    typedef R Quarter __attribute__((vector_size(16)));
    static constexpr int COUNT = 64 / sizeof(R);

    static Type load(const R *x, int64_t count = COUNT) {
        Type v = {};
        __builtin_memcpy(&v, x, count * sizeof(R));
        return v;
    }

    static double sum(Type v) {
        Half h[2];
        Quarter q[2];
        __builtin_memcpy(h, &v, 64);
        h[0] += h[1];
        __builtin_memcpy(q, h, 32);
        q[0] += q[1];
        double total = 0;
        for (int k = 0; k < COUNT / 4; ++k) total += q[0][k];
        return total;
    }
};

template <class R> static inline double product(const R *x, const R *v, int64_t count) {
    typedef Lanes<R> L;
    typename L::Type sum = {};
    int64_t i = 0;
    for (; i + L::COUNT <= count; i += L::COUNT) sum += L::load(x + i) * L::load(v + i);
    if (i < count) sum += L::load(x + i, count - i) * L::load(v + i, count - i);
    return L::sum(sum);
}

// Sums of the products of two vectors with each of the first `count` of a ring, of its elements from ... to.
template <class R>
static void products(const R *ring, const R *x, const R *y, int64_t n, int64_t from, int64_t to, int64_t count, double *xs, double *ys) {
    for (int64_t j = 0; j < count; ++j) {
        const R *v = ring + j * n + from;
        xs[j] += product(x, v, to - from);
        ys[j] += product(y, v, to - from);
    }
}

// x of A x = b in the place of b, by elimination with the largest pivots; A (m, m) is overwritten. M is m where the
// compiler is to know it, else 0.
template <int M> static void eliminate(double *a, double *b, int64_t size) {
    const int64_t m = M ? M : size;
    for (int64_t k = 0; k < m; ++k) {
        int64_t p = k;
        for (int64_t i = k + 1; i < m; ++i)
            if (std::fabs(a[i * m + k]) > std::fabs(a[p * m + k])) p = i;
        if (p != k) {
            for (int64_t j = k; j < m; ++j) std::swap(a[k * m + j], a[p * m + j]);
            std::swap(b[k], b[p]);
        }
        double inverse = 1.0 / a[k * m + k];
        for (int64_t i = k + 1; i < m; ++i) {
            double factor = a[i * m + k] * inverse;
            for (int64_t j = k + 1; j < m; ++j) a[i * m + j] -= factor * a[k * m + j];
            b[i] -= factor * b[k];
        }
    }
    for (int64_t k = m - 1; k >= 0; --k) {
        for (int64_t j = k + 1; j < m; ++j) b[k] -= a[k * m + j] * b[j];
        b[k] /= a[k * m + k];
    }
}

static void solve(double *a, double *b, int64_t m) {
    switch (m) {
        case 2: return eliminate<2>(a, b, m);
        case 3: return eliminate<3>(a, b, m);
        case 4: return eliminate<4>(a, b, m);
        case 5: return eliminate<5>(a, b, m);
        default: return eliminate<0>(a, b, m);
    }
}

// f(z) - z into r, and the squares of its norm and of that of f(z).
template <class R> static void residual(const R *z, const R *fz, R *r, int64_t count, double *squares) {
    SIDE_BY_SIDE
    for (int64_t i = 0; i < count; ++i) r[i] = fz[i] - z[i];
    squares[0] += product(r, r, count);
    squares[1] += product(fz, fz, count);
}

// start + sum_j weights[j] ring[j], in the place of start, of the elements from ... to.
template <class R>
static void combine(const R *ring, const double *weights, int64_t n, int64_t from, int64_t to, int64_t count, R *start) {
    typedef Lanes<R> L;
    for (int64_t i = from; i < to; i += L::COUNT) {
        int64_t some = std::min<int64_t>(L::COUNT, to - i);
        R *place = start + (i - from);
        typename L::Type sum = some == L::COUNT ? L::load(place) : L::load(place, some);
        for (int64_t j = 0; j < count; ++j) {
            const R *v = ring + j * n + i;
            sum += (R)weights[j] * (some == L::COUNT ? L::load(v) : L::load(v, some));
        }
        __builtin_memcpy(place, &sum, some * sizeof(R));
    }
}

template <class R> struct Row {
    const R *z, *fz, *z_before, *fz_before;
    R *next, *residuals, *images;  // Broyden's ring, of steps, is the first one
    double *gram, squares[2] = {0.0, 0.0};
    const Iteration &job;

    Row(const Iteration &job, int64_t row) : job(job) {
        int64_t at = row * job.n, ring = at * job.memory;
        z = (const R *)job.z + at, fz = (const R *)job.fz + at;
        z_before = (const R *)job.z_before + at, fz_before = (const R *)job.fz_before + at;
        next = (R *)job.next + at;
        residuals = (R *)job.residuals + ring, images = (R *)job.images + ring;
        gram = job.gram + row * job.memory * job.memory;
    }

    void note(const double *newest) {
        for (int64_t j = 0; j < job.count; ++j) gram[job.slot * job.memory + j] = gram[j * job.memory + job.slot] = newest[j];
    }

    R image(const R *z, const R *fz, int64_t i) const { return fz[i] - (R)(1.0 - job.weight) * (fz[i] - z[i]); }

    // Anderson's first step, without a history.
    void first() {
        R r[BLOCK];
        for (int64_t from = 0; from < job.n; from += BLOCK) {
            int64_t to = std::min(from + BLOCK, job.n);
            residual(z + from, fz + from, r, to - from, squares);
            SIDE_BY_SIDE
            for (int64_t i = from; i < to; ++i) next[i] = image(z, fz, i);
        }
    }

    void anderson(double *work) {
        int64_t m = job.count, n = job.n;
        double *newest = work, *right = newest + m, *scale = right + m, *scaled = scale + m;
        std::fill(newest, scale, 0.0);
        R r[BLOCK];
        for (int64_t from = 0; from < n; from += BLOCK) {
            int64_t to = std::min(from + BLOCK, n);
            residual(z + from, fz + from, r, to - from, squares);
            R *change = residuals + job.slot * n + from;
            const R *zb = z_before + from, *fb = fz_before + from;
            SIDE_BY_SIDE
            for (int64_t i = 0; i < to - from; ++i) change[i] = r[i] - (fb[i] - zb[i]);
            products(residuals, change, r, n, from, to, m, newest, right);
        }
        note(newest);
        for (int64_t i = 0; i < m; ++i) scale[i] = 1.0 / std::sqrt(std::max(gram[i * job.memory + i], TINY));
        for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < m; ++j) scaled[i * m + j] = gram[i * job.memory + j] * (scale[i] * scale[j]);
            scaled[i * m + i] += job.floor;
            right[i] *= -scale[i];
        }
        solve(scaled, right, m);
        for (int64_t i = 0; i < m; ++i) right[i] *= scale[i];
        for (int64_t from = 0; from < n; from += BLOCK) {
            int64_t to = std::min(from + BLOCK, n);
            R *change = images + job.slot * n;
            SIDE_BY_SIDE
            for (int64_t i = from; i < to; ++i) {
                R now = image(z, fz, i);
                change[i] = now - image(z_before, fz_before, i);
                next[i] = now;
            }
            combine(images, right, n, from, to, m, next + from);
        }
    }

    // The steps s_0 ... s_(count - 1) are there; a new one goes behind them, unless the ring is full and begins anew.
    void broyden(double *work, int64_t &start) {
        int64_t m = job.count, n = job.n, last = m - 1;
        double *newest = work, *right = newest + m, *weights = right + m, denominator = 1.0;
        std::fill(newest, weights + m, 0.0);
        R r[BLOCK];
        for (int64_t from = 0; from < n; from += BLOCK) {
            int64_t to = std::min(from + BLOCK, n);
            residual(z + from, fz + from, r, to - from, squares);
            if (m) products(residuals, residuals + last * n + from, r, n, from, to, m, newest, right);
        }
        bool full = m == job.memory;
        if (m) note(newest);
        if (full) start = 0;
        if (m && !full) {
            for (int64_t i = 0; i < m; ++i) {
                double c = i >= start ? right[i] : 0.0, diagonal = gram[i * job.memory + i];
                for (int64_t j = 0; i >= start && j < i; ++j) c += gram[i * job.memory + j + 1] * right[j];
                right[i] = c / (diagonal > TINY ? diagonal : 1.0);
            }
            denominator = 1.0 - right[last];
            bool sound = std::fabs(denominator) > 1e-3;  // not where it is NaN
            for (int64_t i = 1; sound && i < m; ++i) weights[i] = right[i - 1];
            if (!sound) start = m, denominator = 1.0;
        }
        R *step = residuals + (full ? 0 : m) * n;
        double again[2];
        for (int64_t from = 0; from < n; from += BLOCK) {
            int64_t to = std::min(from + BLOCK, n);
            residual(z + from, fz + from, r, to - from, again);
            if (m && !full) combine(residuals, weights, n, from, to, m, r);
            SIDE_BY_SIDE
            for (int64_t i = from; i < to; ++i) {
                step[i] = r[i - from] / (R)denominator;
                next[i] = z[i] + step[i];
            }
        }
    }
};

enum Method { ANDERSON, BROYDEN };

template <class R> static void iterate(const Iteration &job, int64_t method, int64_t first, int64_t stop) {
    std::vector<double> work((job.memory + 4) * (job.memory + 4));
    for (int64_t row = first; row < stop; ++row) {
        Row<R> at(job, row);
        if (method == BROYDEN)
            at.broyden(work.data(), job.starts[row]);
        else if (job.count > 0)
            at.anderson(work.data());
        else
            at.first();
        for (int k = 0; k < 2; ++k) job.norms[2 * row + k] = std::sqrt(at.squares[k]);
    }
}

extern "C" void iterate32(const Iteration *job, int64_t method, int64_t first, int64_t stop) {
    iterate<float>(*job, method, first, stop);
}

extern "C" void iterate64(const Iteration *job, int64_t method, int64_t first, int64_t stop) {
    iterate<double>(*job, method, first, stop);
}
