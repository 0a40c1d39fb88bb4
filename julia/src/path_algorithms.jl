# How to follow a zero path: one small immutable object per method, holding its tolerances and step control.

"""
Supertype of every method that [`trace_path`](@ref) takes.
"""
abstract type AbstractPathAlgorithm end

"""
    HomoJL.PathOptions(; rtol = 1e-6, atol = 1e-8, predictor = Midpoint(), max_corrections = 5, first_step = 0.05,
    max_step = Inf,
        max_steps = 2000, linear_solver = :auto, krylov_steps = 60)

What every method that follows a path is told; the methods take these keywords themselves.

A step is a predictor's, along the tangent, and then Newton's corrections back onto the path. It is halved and taken
again where the corrections fail or the path turns by too much, and grows, at most twofold, where all is easy.

# Fields
- `rtol`, `atol`: the path is corrected until norm(H) <= atol + rtol norm(z), root mean squares over the state; at
  lambda = 1 likewise. Not negative, not both zero.
- `predictor`: `Euler()`, `Midpoint()`, `RK4()`, `Bosh3()`, `Dopri5()` or `Tsit5()`, or a name of these; one step of it
  is taken along the tangent field. If it estimates its error, its own tolerances limit the step too; its other options
  are not used.
- `max_corrections`: Newton's corrections of one step before it is halved.
- `first_step`, `max_step`: first and largest step along the path, in its unit of length.
- `max_steps`: accepted and rejected steps together before the solve stops.
- `linear_solver`: `:dense`: the Jacobian column by column and an LU factorisation on the CPU; `:krylov`: GMRES on
  Jacobian-vector products; `:auto`: dense for states of up to 64 elements.
- `krylov_steps`: most products for one linear system.

Throws an `ArgumentError` for a value outside its range.
"""
struct PathOptions
    rtol::Float64
    atol::Float64
    predictor::AbstractODEAlgorithm
    max_corrections::Int
    first_step::Float64
    max_step::Float64
    max_steps::Int
    linear_solver::Symbol
    krylov_steps::Int

    function PathOptions(;
            rtol = 1.0e-6, atol = 1.0e-8, predictor = Midpoint(), max_corrections = 5, first_step = 0.05,
            max_step = Inf, max_steps = 2000, linear_solver = :auto, krylov_steps = 60
        )
        require(isfinite(rtol) && rtol >= 0, "rtol must be a finite number >= 0, got $rtol")
        require(isfinite(atol) && atol >= 0, "atol must be a finite number >= 0, got $atol")
        require(rtol + atol > 0, "rtol and atol must not both be zero")
        predictor = as_predictor(predictor)
        tableau(predictor)
        require(max_corrections >= 0, "max_corrections must be at least 0, got $max_corrections")
        require(isfinite(first_step) && first_step > 0, "first_step must be positive and finite, got $first_step")
        require(max_step > 0, "max_step must be positive, got $max_step")
        require(max_steps >= 1, "max_steps must be at least 1, got $max_steps")
        solver = Symbol(linear_solver)
        require(solver in (:auto, :dense, :krylov), "linear_solver must be :auto, :dense or :krylov, got $solver")
        require(krylov_steps >= 1, "krylov_steps must be at least 1, got $krylov_steps")
        return new(rtol, atol, predictor, max_corrections, first_step, max_step, max_steps, solver, krylov_steps)
    end
end

const PREDICTORS = Dict(
    "Euler" => Euler, "Midpoint" => Midpoint, "RK4" => RK4, "Bosh3" => Bosh3, "Dopri5" => Dopri5, "Tsit5" => Tsit5
)

as_predictor(algorithm::AbstractODEAlgorithm) = algorithm

function as_predictor(name)
    known = join(sort!(collect(keys(PREDICTORS))), ", ")
    require(haskey(PREDICTORS, String(name)), "predictor must be one of $known, got $name")
    return PREDICTORS[String(name)]()
end

"""
    ArcLength(; velocity = 1, bound = 1e6, options...)

Follow the path by its length, through folds where it turns back in lambda; for the other keywords see
[`HomoJL.PathOptions`](@ref).

The tangent is the null space of [H_z, H_lambda], at first with lambda growing, then oriented by continuity. The
corrections stay in the hyperplane orthogonal to it, so nothing is ever divided by dlambda/ds. Where the path crosses
lambda = 1, Newton's method for r itself, started from the crossing, ends it there.

# Fields
- `velocity`: length of the tangent (dz/ds, dlambda/ds): a positive number, or a function of s; it changes the
  parametrisation of the path, not the path: steps are chosen by length.
- `bound`: give up where the root mean square of z exceeds this.

References: Allgower, Georg (1990), Numerical Continuation Methods, chapters 4 to 6; Ding et al. (2023), arXiv
2310.09583, (2), (9).
"""
struct ArcLength <: AbstractPathAlgorithm
    options::PathOptions
    velocity::Any
    bound::Float64

    function ArcLength(; velocity = 1.0, bound = 1.0e6, options...)
        options = PathOptions(; options...)
        require(options.max_corrections >= 1, "max_corrections must be at least 1, got $(options.max_corrections)")
        require(
            !(velocity isa Number) || (isfinite(velocity) && velocity > 0),
            "velocity must be positive and finite, or a function of s, got $velocity",
        )
        require(bound > 0, "bound must be positive, got $bound")
        return new(options, velocity, bound)
    end
end

"""
    NaturalParameter(; options...)

Follow the path by lambda itself; cannot pass a fold, and says so. For the keywords see [`HomoJL.PathOptions`](@ref).

Steps are lengths in lambda; s is the path's length all the same. With `max_corrections = 0` nothing pulls back onto the
path, and steps stay as long as the first unless the predictor estimates its error: on a Newton homotopy one Euler step
of length 1 is then Newton's step.
"""
struct NaturalParameter <: AbstractPathAlgorithm
    options::PathOptions

    NaturalParameter(; options...) = new(PathOptions(; options...))
end

name(::ArcLength) = "ArcLength"
name(::NaturalParameter) = "NaturalParameter"

follows_length(::ArcLength) = true
follows_length(::NaturalParameter) = false

const DENSE_UP_TO = 64

"Whether linear systems of a state of `n` elements are solved by a factorisation."
solves_densely(options::PathOptions, n::Int) =
    options.linear_solver === :dense || (options.linear_solver === :auto && n <= DENSE_UP_TO)

"v(s); an `ArgumentError` if a velocity that is a function returns anything but a positive finite number."
function velocity_at(algorithm::ArcLength, s::Float64)::Float64
    v = algorithm.velocity isa Number ? algorithm.velocity : algorithm.velocity(s)
    require(isfinite(v) && v > 0, "velocity must be positive and finite, got $v at s = $s")
    return v
end
