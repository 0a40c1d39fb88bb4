// The loop over the steps of one solve, and the gradient back over those that were accepted. What stands above in the file
// gives R, N, the method (S, FSAL, DENSE, POWERS, A, B, C, E, D), the sizes of memory, once, field and pull, and control.hpp.

enum Keep : int64_t { NOTHING, STATES, EVALUATIONS };

constexpr int64_t SLOT = SAVED + (NEEDS_STATE ? ROOM : 0);  // of an evaluation
constexpr int64_t SLOTS = FSAL ? S - 1 : S;                 // of a step
constexpr int64_t FIRST_CHUNK = 8;                          // steps in the first piece of memory; each is twice the last

struct Chunk {
    double *steps;  // start and size of each
    R *kept;        // what is to be kept of them
};

struct Job {
    Control control;
    int64_t planned, keep;
    const double *plan;  // start, size and end of each planned step
    const R *y0;
    const void *const *inputs;
    R *work, *ys;  // states at the save times, the first of them y0
    double *fractions;
    int64_t *in_step;
    Chunk chunks[40];
    int64_t n_chunks, started, evaluations;
    Paces pace;
};

// Pieces of work memory, each of them ROOM long where it is a state.
static inline R *consts_of(const Job &job) { return job.work; }
static inline R *temporary(const Job &job) { return job.work + CONSTS; }
static inline R *slots_of(const Job &job) { return job.work + CONSTS + WORK; }  // of the evaluations of one step
static inline R *states_of(const Job &job, int i) { return slots_of(job) + (S + 1) * SLOT + i * int64_t(ROOM); }
static inline R *stage(const Job &job, int i) { return states_of(job, 4 + i); }  // 0 to 3: y, next y, argument, other
extern "C" int64_t work_size() { return CONSTS + WORK + (S + 1) * SLOT + (4 + 2 * S) * int64_t(ROOM); }
extern "C" int64_t slot_size() { return SLOT; }

static inline Chunk &chunk_of(Job &job, int64_t step, int64_t &at) {
    int k = 63 - __builtin_clzll(step / FIRST_CHUNK + 1);
    at = step - FIRST_CHUNK * ((int64_t(1) << k) - 1);
    return job.chunks[k];
}
static inline double *step_of(Job &job, int64_t i) {
    int64_t at;
    Chunk &chunk = chunk_of(job, i, at);
    return chunk.steps + 2 * at;
}
static inline R *state_of(Job &job, int64_t i) {
    int64_t at;
    Chunk &chunk = chunk_of(job, i, at);
    return chunk.kept + at * N;
}
// Memory of an evaluation: that of a first stage is the step's before, where that has evaluated it.
static inline R *slot_of(Job &job, int64_t i, int j) {
    if (job.keep != EVALUATIONS) return slots_of(job) + j * SLOT;
    int64_t at;
    if (FSAL && j == 0) {
        if (i == 0) return slots_of(job) + S * SLOT;
        Chunk &chunk = chunk_of(job, i - 1, at);
        return chunk.kept + (at * SLOTS + SLOTS - 1) * SLOT;
    }
    Chunk &chunk = chunk_of(job, i, at);
    return chunk.kept + (at * SLOTS + j - FSAL) * SLOT;
}
static inline R *argument_of(R *slot, R *other) { return NEEDS_STATE ? slot + SAVED : other; }

static void evaluate(Job &job, R t, const R *y, R *slot, R *k) {
    field(&t, y, job.inputs, consts_of(job), slot, temporary(job), k);
    ++job.evaluations;
}

// What step number `step` passes by.
static void save(Job &job, int64_t step, double t, double h, double t_next, const R *y, const R *y_next) {
    const Control &control = job.control;
    Paces &pace = job.pace;
    const double direction = control.direction();
    for (int64_t &next = pace.next[0]; next <= control.saves && (control.ts[next] - t_next) * direction <= 0; ++next) {
        const double s = control.ts[next], fraction = (s - t_next) * direction >= 0 ? 1 : (s - t) / h;
        R *out = job.ys + next * int64_t(N);
        std::memcpy(out, fraction == 1 ? y_next : y, sizeof(R) * N);
        if (fraction != 1) {
            double weights[S];
            weights_at(fraction, weights);
            const R size = R(h);
            for (int j = 0; j < S; ++j)
                if (weights[j] != 0) add(out, &size, weights[j], stage(job, j));
        }
        job.fractions[next] = fraction;
        job.in_step[next] = step;
    }
    pace.next_save[0] = control.ts[std::min(pace.next[0], control.saves)];
}

// Stages J to LAST of step `at`.
template <int J, int LAST> static void stages(Job &job, int64_t at, double t, double h, const R *y) {
    if constexpr (J <= LAST) {
        R *slot = slot_of(job, at, J), *argument = argument_of(slot, states_of(job, 2));
        const R size = R(h);
        combine<J>(y, &size, stage(job, 0), argument);
        evaluate(job, R(t + C[J] * h), argument, slot, stage(job, J));
        stages<J + 1, LAST>(job, at, t, h, y);
    }
}

static void start(Job &job) {
    const Control &control = job.control;
    Paces &pace = job.pace;
    R *y = states_of(job, 0);
    once(job.inputs, consts_of(job));
    std::memcpy(y, job.y0, sizeof(R) * N);
    std::memcpy(job.ys, job.y0, sizeof(R) * N);
    job.started = pace.next[0] = 1;
    pace.t[0] = control.t0, pace.next_save[0] = control.ts[1];
    if (job.planned) return;
    R *slot = slot_of(job, 0, 0), *argument = argument_of(slot, states_of(job, 2)), *k = stage(job, 0);
    std::memcpy(argument, job.y0, sizeof(R) * N);
    evaluate(job, R(control.t0), argument, slot, k);
    pace.h[0] = control.direction() * control.first;
    if (std::isnan(control.first)) {
        auto moved = [&](const double *h, const R *at, R *out) { evaluate(job, R(control.t0 + *h), at, slots_of(job), out); };
        first_sizes(control, y, k, pace.h, moved, states_of(job, 1), states_of(job, 2), states_of(job, 3));
        if (std::isnan(pace.h[0])) pace.failed[0] = DIVERGED;
    }
}

// On with a solve, until it ends or there is no more room for steps.
extern "C" int64_t advance(Job *of) {
    Job &job = *of;
    Paces &pace = job.pace;
    if (!job.started) start(job);
    R *y = states_of(job, 0), *y_next = states_of(job, 1), *ks = stage(job, 0);
    bool known = pace.accepted[0] > 0 ? FSAL : !job.planned;  // whether the first stage is there
    while (pace.failed[0] == SUCCESS && pace.next[0] <= job.control.saves) {
        const int64_t at = pace.accepted[0];
        if (at >= FIRST_CHUNK * ((int64_t(1) << job.n_chunks) - 1)) return NO_ROOM;
        if (job.planned) {
            const double *plan = job.plan + 3 * at;
            pace.t[0] = plan[0], pace.step[0] = plan[1], pace.t_next[0] = plan[2];
        } else
            propose(job.control, pace);
        if (pace.failed[0]) break;
        const double t = pace.t[0], h = pace.step[0];
        const R size = R(h);
        if (known)
            stages<1, LAST>(job, at, t, h, y);
        else
            stages<0, LAST>(job, at, t, h, y);
        combine<S>(y, &size, ks, y_next);
        if (FSAL) {
            R *slot = slot_of(job, at, S - 1), *argument = argument_of(slot, y_next);
            if (argument != y_next) std::memcpy(argument, y_next, sizeof(R) * N);
            evaluate(job, R(t + h), argument, slot, stage(job, S - 1));
        }
        known = true;
        if (job.planned)
            ++pace.accepted[0];
        else {
            R *scale = states_of(job, 3), *error = states_of(job, 2);
            tolerances(job.control, y, y_next, scale);
            combine<S + 1>(nullptr, &size, ks, error);
            norms(error, scale, pace.ratio);
            choose(job.control, pace);
            if (pace.failed[0]) break;
            if (!pace.good[0]) continue;
        }
        double *step = step_of(job, at);
        step[0] = t, step[1] = h;
        if (job.keep == STATES) std::memcpy(state_of(job, at), y, sizeof(R) * N);
        save(job, at, t, h, pace.t_next[0], y, y_next);
        pace.t[0] = pace.t_next[0];
        std::memcpy(y, y_next, sizeof(R) * N);
        if (FSAL) std::memcpy(ks, stage(job, S - 1), sizeof(R) * N);
        known = FSAL;
    }
    return pace.failed[0];
}

// The gradient.

// The product of an evaluation's derivatives with a cotangent: added to what is given by its argument.
static void pulled(Job &job, R t, const R *slot, const R *argument, const R *g, R *by_argument, R *const *by) {
    pull(&t, argument, job.inputs, consts_of(job), slot, temporary(job), g, by_argument, by);
}

// Saved states inside step i, as cotangents of its start and its stages; returns whether there is one.
static bool inside(Job &job, int64_t i, const R *cotangents, R *by_start, R *by_end, R *by_stages, int from) {
    bool any = false;
    int64_t s = std::lower_bound(job.in_step + 1, job.in_step + job.pace.next[0], i) - job.in_step;
    for (; s < job.pace.next[0] && job.in_step[s] == i; ++s) {
        const R *c = cotangents + s * int64_t(N);
        if (job.fractions[s] == 1) {
            if (by_end) add(by_end, c);
            continue;
        }
        any = true;
        double weights[S];
        weights_at(job.fractions[s], weights);
        if (by_start) add(by_start, c);
        const R h = R(step_of(job, i)[1]);
        for (int j = from; j < S; ++j) add(by_stages + (j - from) * int64_t(ROOM), &h, weights[j], c);
    }
    return any;
}

// Cotangents of the saved states (saves + 1, N) -> the gradient by y0; those by the inputs are added up. Returns the
// number of products. `end` is the last state.
extern "C" int64_t gradient(Job *of, const R *cotangents, R *by_y, R *const *by, const R *end) {
    Job &job = *of;
    int64_t products = 0;
    R *by_next = states_of(job, 1), *by_start = states_of(job, 3), *by_argument = states_of(job, 0);
    R *by_stages = states_of(job, 4 + S);
    std::memset(by_next, 0, sizeof(R) * N);
    once(job.inputs, consts_of(job));
    for (int64_t i = job.pace.accepted[0]; i-- > 0;) {
        const double t = step_of(job, i)[0], h = step_of(job, i)[1];
        const R size = R(h);
        std::memset(by_stages, 0, sizeof(R) * S * ROOM);
        std::memset(by_start, 0, sizeof(R) * N);
        const bool within = inside(job, i, cotangents, by_start, by_next, by_stages, 0);
        if (FSAL && within && i == job.pace.accepted[0] - 1) {  // its last stage is no other step's first one
            R *slot = slot_of(job, i, S - 1), *argument = argument_of(slot, const_cast<R *>(end));
            if (job.keep != EVALUATIONS) {
                if (argument != end) std::memcpy(argument, end, sizeof(R) * N);
                evaluate(job, R(t + h), argument, slot, stage(job, S - 1));
            }
            pulled(job, R(t + h), slot, argument, by_stages + (S - 1) * int64_t(ROOM), by_argument, by);
            add(by_next, by_argument);
            ++products;
        }
        if (job.keep != EVALUATIONS) stages<0, LAST>(job, i, t, h, state_of(job, i));
        for (int j = 0; j < S; ++j)
            if (B[j] != 0) add(by_stages + j * int64_t(ROOM), &size, B[j], by_next);
        add(by_start, by_next);
        if (FSAL && i > 0) inside(job, i - 1, cotangents, nullptr, nullptr, by_stages, S - 1);
        for (int j = LAST; j >= 0; --j) {
            R *slot = slot_of(job, i, j);
            pulled(job, R(t + C[j] * h), slot, slot + SAVED, by_stages + j * int64_t(ROOM), by_argument, by);
            add(by_start, by_argument);
            for (int l = 0; l < j; ++l)
                if (A[j][l] != 0) add(by_stages + l * int64_t(ROOM), &size, A[j][l], by_argument);
            ++products;
        }
        std::memcpy(by_next, by_start, sizeof(R) * N);
    }
    std::memcpy(by_y, by_next, sizeof(R) * N);
    add(by_y, cotangents);
    return products;
}
