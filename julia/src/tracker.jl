# How to follow a zero path: one small immutable object with its tolerances and step control.

"The explicit midpoint rule, the one predictor that OrdinaryDiffEqExplicitTableaus does not have."
midpoint() = DiffEqBase.ExplicitRKTableau([0.0 0.0; 0.5 0.0], [0.0, 0.5], [0.0, 1.0], 2)

"""
    ZeroPathTracker(; by = :length, options...)

Follow the zero path of a `HomotopyProblem` H(u, p, λ) = 0 from λspan[1], where u0 is a zero, to λspan[2], which must be 0 and 1.

NonlinearSolve's `ArcLengthContinuation` and `HomotopySweep` are for the same problems. This one takes explicit Runge-Kutta steps
along the tangent field with an estimate of their error, never needs a matrix (`linear_solver = :krylov`, with Krylov.jl loaded), counts
folds, and tells a path that left its bounds, came back or jumped from one that was hard to follow.

A step is a predictor's, along the tangent, and then Newton's corrections back onto the path. It is halved and taken
again where the corrections fail or the path turns by too much, and grows, at most twofold, where all is easy.

# Fields
- `by`: `:length`: by the length of the path, through folds where it turns back in λ; the tangent is the null space of
  [H_u, H_λ], oriented by continuity, and the corrections stay orthogonal to it. `:lambda`: by λ itself, which cannot pass a
  fold, and says so; with `max_corrections = 0` nothing pulls back onto the path, and on a Newton homotopy one Euler
  step of length 1 is then Newton's step.
- `reltol`, `abstol`: the path is corrected until norm(H) <= abstol + reltol norm(u), root mean squares over the state; at
  λ = 1 likewise. Not negative, not both zero.
- `predictor`: a tableau of OrdinaryDiffEqExplicitTableaus, such as its `Tsitouras5()`; by default the midpoint rule. If it estimates its
  error, `predictor_reltol` and `predictor_abstol` limit the step too.
- `max_corrections`: Newton's corrections of one step before it is halved.
- `first_step`, `max_step`: first and largest step along the path, in its unit of length.
- `maxiters`: accepted and rejected steps together before the solve stops.
- `linear_solver`: `:dense`: the Jacobian column by column and an LU factorisation on the CPU; `:krylov`: Krylov.jl's GMRES on
  Jacobian-vector products; `:auto`: dense for states of up to 64 elements.
- `krylov_steps`: most products for one linear system.
- `velocity`: length of the tangent (du/ds, dλ/ds): a positive number, or a function of s; it changes the parametrisation of
  the path, not the path: steps are chosen by length.
- `bound`: give up where the root mean square of u exceeds this.

The solution's `original` is a [`ZeroPath`](@ref). Throws an `ArgumentError` for a value outside its range.

References: Allgower, Georg (1990), Numerical Continuation Methods, chapters 4 to 6; Ding et al. (2023), arXiv
2310.09583, (1) to (3), (9), (21), (23).

# Example
```jldoctest
julia> using ZeroPaths

julia> prob = NonlinearProblem((du, u, p) -> (du .= atan.(u)), [3.0]);  # Newton's method diverges from 3

julia> sol = solve(homotopy(prob), ZeroPathTracker());

julia> sol.retcode, abs(sol.u[1]) < 1e-7, sol.original.folds
(SciMLBase.ReturnCode.Success, true, 0)
```
"""
struct ZeroPathTracker <: SciMLBase.AbstractNonlinearAlgorithm
    by::Symbol
    reltol::Float64
    abstol::Float64
    predictor::DiffEqBase.ExplicitRKTableau
    predictor_reltol::Float64
    predictor_abstol::Float64
    max_corrections::Int
    first_step::Float64
    max_step::Float64
    maxiters::Int
    linear_solver::Symbol
    krylov_steps::Int
    velocity::Any
    bound::Float64

    function ZeroPathTracker(;
            by = :length, reltol = 1.0e-6, abstol = 1.0e-8, predictor = midpoint(), predictor_reltol = 1.0e-3,
            predictor_abstol = 1.0e-6, max_corrections = 5, first_step = 0.05, max_step = Inf, maxiters = 2000,
            linear_solver = :auto, krylov_steps = 60, velocity = 1.0, bound = 1.0e6
        )
        require(by in (:length, :lambda), "by must be :length or :lambda, got :$by")
        require_tolerances(reltol, abstol, maxiters)
        least = by === :length ? 1 : 0
        require(max_corrections >= least, "max_corrections must be at least $least, got $max_corrections")
        require(isfinite(first_step) && first_step > 0, "first_step must be positive and finite, got $first_step")
        require(max_step > 0, "max_step must be positive, got $max_step")
        kinds = (:auto, :dense, :krylov)
        require(linear_solver in kinds, "linear_solver must be one of $kinds, got $(repr(linear_solver))")
        require(krylov_steps >= 1, "krylov_steps must be at least 1, got $krylov_steps")
        require(
            !(velocity isa Number) || (isfinite(velocity) && velocity > 0),
            "velocity must be positive and finite, or a function of s, got $velocity",
        )
        require(bound > 0, "bound must be positive, got $bound")
        return new(
            by, reltol, abstol, predictor, predictor_reltol, predictor_abstol, max_corrections, first_step, max_step,
            maxiters, linear_solver, krylov_steps, velocity, bound,
        )
    end
end

follows_length(tracker::ZeroPathTracker) = tracker.by === :length

"Whether linear systems of a state of `n` elements are solved by a factorisation."
solves_densely(tracker::ZeroPathTracker, n::Int) =
    tracker.linear_solver === :dense || (tracker.linear_solver === :auto && n <= 64)

"v(s); an `ArgumentError` if a velocity that is a function returns anything but a positive finite number."
function velocity_at(tracker::ZeroPathTracker, s::Float64)::Float64
    v = tracker.velocity isa Number ? tracker.velocity : tracker.velocity(s)
    require(isfinite(v) && v > 0, "velocity must be positive and finite, got $v at s = $s")
    return v
end

# ---- one step of the predictor ----

"The last stage is the derivative at the end of the step."
first_same_as_last(t) = size(t.A, 1) > 1 && iszero(t.α[end]) && t.A[end, 1:(end - 1)] ≈ t.α[1:(end - 1)]

"Of the error estimate, solution minus embedded solution; `nothing`: the method has none."
error_weights(t) = isempty(t.αEEst) ? nothing : t.α .- t.αEEst

"y + h sum_j weights[j] ks[j], leaving out zero weights."
function combine(y::A, h::Float64, weights, ks::Vector{A}) where {T, A <: AbstractVector{T}}
    out = copy(y)
    for (weight, k) in zip(weights, ks)
        iszero(weight) || (out .+= T(h * weight) .* k)
    end
    return out
end

"""
    runge_kutta_step(field, tableau, h, y, k_first) -> y_next, ks

One step of size `h` of dy/ds = field(y) from `y`, where `k_first` is the derivative; the last stage of a method whose
first stage is the last step's is evaluated too.
"""
function runge_kutta_step(field, tableau, h::Float64, y::A, k_first::A) where {A}
    ks = A[k_first]
    fsal = first_same_as_last(tableau)
    for i in 2:(length(tableau.α) - fsal)
        push!(ks, field(combine(y, h, tableau.A[i, 1:(i - 1)], ks)))
    end
    y_next = combine(y, h, tableau.α, ks)
    fsal && push!(ks, field(y_next))
    return y_next, ks
end
