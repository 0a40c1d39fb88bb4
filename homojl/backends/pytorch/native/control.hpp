// The method's weights, and the control of step sizes: the formulas of homojl/backends/pytorch/control.py and joint.py.

enum Status : int64_t { SUCCESS, MAX_STEPS, STEP_TOO_SMALL, DIVERGED, NO_ROOM = -1 };

struct Control {
    double t0, t1, rtol, atol, first, min_step, max_step, floor;
    double safety, min_factor, max_factor, beta1, beta2, beta3, beta_older, error_order, order;
    int64_t max_steps, saves;
    const double *ts;  // from t0 on, `saves` after it

    double direction() const { return t1 > t0 ? 1 : -1; }
};

// Where the steps of a state stand: the time, the size to try next, the one before it was cut short, and of accepted steps
// the size and the error ratio of the last one and of the one before.
struct Pace {
    double t, h, wanted, ratio, h_old, ratio_old, ratio_older;
    int64_t accepted, rejected, next, lands, status;
};

constexpr double weight(int row, int j) { return row < S ? A[row][j] : row == S ? B[j] : E[j]; }

static inline void weights_at(double fraction, double *weights) {
    for (int j = 0; j < S; ++j) {
        double w = 0;
        for (int m = POWERS; m-- > 0;) w = (w + D[j][m]) * fraction;
        weights[j] = w;
    }
}

static inline double clipped(double x, double low, double high) { return std::min(std::max(x, low), high); }

// The size and the end of the next step; another status than success where there is none.
static int64_t propose(const Control &control, Pace &pace, double &h, double &t_next) {
    if (pace.accepted + pace.rejected >= control.max_steps) return MAX_STEPS;
    const double target = DENSE ? control.t1 : control.ts[pace.next];
    h = std::copysign(std::min(std::max(fabs(pace.h), control.floor), control.max_step), pace.h);
    pace.wanted = h;
    pace.lands = fabs(h) >= fabs(target - pace.t) * (1 - 1e-12);
    if (!pace.lands) {
        const double least = std::nextafter(fabs(pace.t), INFINITY) - fabs(pace.t);
        if (fabs(h) <= std::max(control.min_step, 8 * least))
            return std::isfinite(pace.ratio) ? STEP_TOO_SMALL : DIVERGED;
        t_next = pace.t + h;
    } else {
        h = target - pace.t;
        t_next = target;
    }
    return SUCCESS;
}

static inline void after_rejection(const Control &control, Pace &pace, double h) {
    const double power = std::pow(pace.ratio, 1 / control.error_order) / control.safety;
    pace.h = h / clipped(std::isfinite(pace.ratio) ? power : INFINITY, 1 + 1e-3, 1 / control.min_factor);
    ++pace.rejected;
}

static inline void after_acceptance(const Control &control, Pace &pace, double h) {
    const bool first = pace.accepted++ == 0;
    double quotient;
    if (first)
        quotient = std::pow(pace.ratio, 1 / control.error_order);
    else {
        quotient = std::pow(pace.ratio, control.beta1) / std::pow(pace.ratio_old, control.beta2);
        if (control.beta_older != 0) quotient *= std::pow(pace.ratio_older, control.beta_older);
        if (control.beta3 != 0) quotient /= std::pow(h / pace.h_old, control.beta3);
    }
    pace.h = h / clipped(quotient / control.safety, 1 / control.max_factor, 1 / control.min_factor);
    const double bounded = std::max(pace.ratio, 1e-4);
    pace.ratio_older = first ? bounded : pace.ratio_old;
    pace.h_old = h;
    pace.ratio_old = bounded;
    if (pace.lands && fabs(pace.h) < fabs(pace.wanted)) pace.h = pace.wanted;
}

// Hairer's first step from the norms of the state, its derivative, and how that changes over the probed step.
static inline double probed_size(const Control &control, double d0, double d1) {
    return std::min(d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1, fabs(control.t1 - control.t0));
}

static inline double first_size(const Control &control, double d1, double d2, double h0) {
    if (!std::isfinite(d2)) return h0;
    const double steepest = std::max(d1, d2);
    const double h1 = steepest <= 1e-15 ? std::max(1e-6, 1e-3 * h0) : std::pow(0.01 / steepest, 1 / control.order);
    return std::min(std::min(100 * h0, h1), fabs(control.t1 - control.t0));
}
