// The method's weights, and the control of step sizes: the formulas of homojl/backends/pytorch/control.py and joint.py, for
// W states side by side, each with steps of its own; element c of lane i lies at c * W + i, ROW are those of a lane.

enum Status : int64_t { SUCCESS, MAX_STEPS, STEP_TOO_SMALL, DIVERGED, NO_ROOM = -1 };

constexpr int LAST = FSAL ? S - 2 : S - 1;  // the last stage that the next state needs

struct Control {
    double t0, t1, rtol, atol, first, min_step, max_step, floor;
    double safety, min_factor, max_factor, beta1, beta2, beta3, beta_older, error_order, order;
    int64_t max_steps, saves;
    const double *ts;  // from t0 on, `saves` after it

    double direction() const { return t1 > t0 ? 1 : -1; }
};

// Where the steps of each lane stand: the time, the size to try next, the step that is taken and its end, its error ratio, of
// accepted steps the size and the ratio of the last one and of the one before, and the next save time.
struct Paces {
    double t[W], h[W], step[W], t_next[W], ratio[W], h_old[W], ratio_old[W], ratio_older[W], next_save[W];
    int64_t accepted[W], rejected[W], next[W], failed[W], lands[W], good[W];
    int64_t sample[W], before[W];  // negative: the lane is empty
};

constexpr double weight(int row, int j) { return row < S ? A[row][j] : row == S ? B[j] : E[j]; }

static inline void weights_at(double fraction, double *weights) {
    for (int j = 0; j < S; ++j) {
        double w = 0;
        for (int m = POWERS; m-- > 0;) w = (w + D[j][m]) * fraction;
        weights[j] = w;
    }
}

// y, if it is not null, plus h, one for each lane, times a row of the method's weights with the stages: S is that of the
// next state, S + 1 that of the error.
template <int WHICH, std::size_t... J>
static inline void combine(const R *y, const R *h, const R *ks, R *__restrict out, std::index_sequence<J...>) {
    for (int c = 0; c < ROW; ++c)
        for (int i = 0; i < W; ++i) {
            const int64_t at = c * int64_t(W) + i;
            R sum = 0;
            (void)std::initializer_list<int>{
                (weight(WHICH, J) != 0 ? (sum += R(weight(WHICH, J)) * ks[J * int64_t(ROOM) + at], 0) : 0)...};
            out[at] = y ? y[at] + h[i] * sum : h[i] * sum;
        }
}
template <int WHICH> static void combine(const R *y, const R *h, const R *ks, R *out) {
    combine<WHICH>(y, h, ks, out, std::make_index_sequence<S>());
}

static inline void add(R *__restrict to, const R *x) {
    for (int64_t i = 0; i < N; ++i) to[i] += x[i];
}
static inline void add(R *__restrict to, const R *h, double factor, const R *x) {
    for (int c = 0; c < ROW; ++c)
        for (int i = 0; i < W; ++i) to[c * int64_t(W) + i] += h[i] * R(factor) * x[c * int64_t(W) + i];
}

// What an error of each element may come to in a step from y to y_next.
static void tolerances(const Control &control, const R *y, const R *y_next, R *scale) {
    for (int64_t i = 0; i < N; ++i) scale[i] = R(control.atol) + largest(fabs(y[i]), fabs(y_next[i])) * R(control.rtol);
}

// Root mean squares of x in units of scale.
static void norms(const R *x, const R *scale, double *out) {
    if (W == 1) {  // of which the parts are added up in float64
        double total = 0;
        for (int64_t start = 0; start < N; start += 1024) {
            R part = 0;
            const int64_t stop = std::min<int64_t>(N, start + 1024);
            SUMMED(part)
            for (int64_t i = start; i < stop; ++i) {
                const R q = x[i] / scale[i];
                part += q * q;
            }
            total += part;
        }
        out[0] = std::sqrt(total / N);
        return;
    }
    R total[W] = {};
    for (int c = 0; c < ROW; ++c)
        for (int i = 0; i < W; ++i) {
            const R q = x[c * int64_t(W) + i] / scale[c * int64_t(W) + i];
            total[i] += q * q;
        }
    for (int i = 0; i < W; ++i) out[i] = std::sqrt(double(total[i]) / ROW);
}

static inline double clipped(double x, double low, double high) { return std::min(std::max(x, low), high); }
static inline bool is_finite(double x) { return fabs(x) <= 1.7976931348623157e308; }

static inline double log_of(double x) {
    int64_t n = bits<int64_t>(x);
    int64_t e = ((n - 0x3fe6a09e667f3bcdLL) >> 52);
    double m = bits<double>(n - (e << 52)), s = (m - 1) / (m + 1), q = s * s, p = 1.0 / 21;
    p = p * q + 1.0 / 19;
    p = p * q + 1.0 / 17;
    p = p * q + 1.0 / 15;
    p = p * q + 1.0 / 13;
    p = p * q + 1.0 / 11;
    p = p * q + 1.0 / 9;
    p = p * q + 1.0 / 7;
    p = p * q + 1.0 / 5;
    p = p * q + 1.0 / 3;
    return double(e) * 0.69314718055994530942 + 2 * s * (p * q + 1);
}
static inline double power_of(double x, double p) {
    if (W == 1) return std::pow(x, p);
    return exp_(p * log_of(x < 1e-300 ? 1e-300 : (x > 1e300 ? 1e300 : x)));
}

// The size and the end of each lane's next step; `failed` where there is none.
static void propose(const Control &control, Paces &p) {
    for (int i = 0; i < W; ++i) {
        const double target = DENSE ? control.t1 : p.next_save[i], rest = target - p.t[i], size = fabs(p.t[i]);
        const double h = std::copysign(std::min(std::max(fabs(p.h[i]), control.floor), control.max_step), p.h[i]);
        const double least = bits<double>(bits<int64_t>(size) + 1) - size;
        const bool live = p.sample[i] >= 0, lands = fabs(h) >= fabs(rest) * (1 - 1e-12);
        const bool many = p.accepted[i] + p.rejected[i] >= control.max_steps;
        const bool small = !lands && fabs(h) <= std::max(control.min_step, 8 * least);
        p.failed[i] = !live ? 0 : many ? MAX_STEPS : small ? (is_finite(p.ratio[i]) ? STEP_TOO_SMALL : DIVERGED) : 0;
        p.lands[i] = lands;
        p.h[i] = h;
        p.step[i] = live && !many && !small ? (lands ? rest : h) : 0;
        p.t_next[i] = lands ? target : p.t[i] + h;
    }
}

// Whether the error of each lane's step is tolerated, and the size to try next.
static void choose(const Control &control, Paces &p) {
    for (int i = 0; i < W; ++i) {
        const double ratio = p.ratio[i], h = p.step[i];
        const bool live = p.sample[i] >= 0 && p.failed[i] == 0, least = live && fabs(h) <= control.floor;
        const bool good = live && (ratio <= 1 || least), first = p.accepted[i] == 0;
        const double plain = W > 1 || first || !good ? power_of(ratio, 1 / control.error_order) : 0;
        double later = W > 1 || !first ? power_of(ratio, control.beta1) / power_of(p.ratio_old[i], control.beta2) : 0;
        later *= control.beta_older != 0 ? power_of(p.ratio_older[i], control.beta_older) : 1;
        later /= control.beta3 != 0 ? power_of(fabs(h / p.h_old[i]), control.beta3) : 1;
        const double quotient = (first ? plain : later) / control.safety;
        double longer = h / clipped(quotient, 1 / control.max_factor, 1 / control.min_factor);
        longer = p.lands[i] && fabs(longer) < fabs(p.h[i]) ? p.h[i] : longer;
        const double shorter =
            h / (is_finite(ratio) ? clipped(plain / control.safety, 1 + 1e-3, 1 / control.min_factor) : 1 / control.min_factor);
        const double bounded = std::max(ratio, 1e-4);
        p.failed[i] = least && !is_finite(ratio) ? int64_t(DIVERGED) : p.failed[i];
        p.h[i] = good ? longer : live ? shorter : p.h[i];
        p.ratio_older[i] = good ? (first ? bounded : p.ratio_old[i]) : p.ratio_older[i];
        p.h_old[i] = good ? h : p.h_old[i];
        p.ratio_old[i] = good ? bounded : p.ratio_old[i];
        p.accepted[i] += good;
        p.rejected[i] += live && !good;
        p.good[i] = good;
    }
}

// Hairer's first steps from the states y and their derivatives k, signed, NaN where they are not finite; `moved` evaluates
// after steps of h, in R too. The last three are memory.
template <class Moved>
static void first_sizes(const Control &control, const R *y, const R *k, double *sizes, Moved moved, R *scale, R *argument, R *other) {
    double h0[W], d0[W], d1[W], d2[W];
    R h[W];
    for (int64_t i = 0; i < N; ++i) scale[i] = fabs(y[i]) * R(control.rtol) + R(control.atol);
    norms(y, scale, d0), norms(k, scale, d1);
    const double span = fabs(control.t1 - control.t0), direction = control.direction();
    for (int i = 0; i < W; ++i) {
        const double size = std::min(d0[i] < 1e-5 || d1[i] < 1e-5 ? 1e-6 : 0.01 * d0[i] / d1[i], span);
        h0[i] = is_finite(d0[i]) && is_finite(d1[i]) ? direction * size : 0;
        h[i] = R(h0[i]);
    }
    for (int c = 0; c < ROW; ++c)
        for (int i = 0; i < W; ++i) argument[c * int64_t(W) + i] = y[c * int64_t(W) + i] + h[i] * k[c * int64_t(W) + i];
    moved(h0, argument, other);
    for (int64_t i = 0; i < N; ++i) other[i] -= k[i];
    norms(other, scale, d2);
    for (int i = 0; i < W; ++i) {
        const double size = fabs(h0[i]), steepest = std::max(d1[i], d2[i] / size);
        const double h1 = steepest <= 1e-15 ? std::max(1e-6, 1e-3 * size) : std::pow(0.01 / steepest, 1 / control.order);
        const double best = is_finite(d2[i] / size) ? std::min(std::min(100 * size, h1), span) : size;
        sizes[i] = is_finite(d0[i]) && is_finite(d1[i]) ? direction * best : double(NAN);
    }
}
