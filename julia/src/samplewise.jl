# Equilibria of a batch, each sample to its own end: what all methods share.

const PATIENCE = 30  # iterations in which the best residual has to fall by a thousandth; a tenth of maxiters if more

"""
    SamplewisePicard(; samples = 1, damping = 0)

u <- u + (1 - damping) f(u), each sample by itself: converges where u + f(u) contracts. `damping` lies in [0, 1).

For a `NonlinearProblem` or a `SteadyStateProblem` whose state is a batch of that many `samples`, equal and contiguous
blocks in memory (the columns of a matrix). A sample has converged when norm(f) <= abstol + reltol norm(u + f), Euclidean norms
over that sample. `solve` takes `reltol = 1e-4`, `abstol = 1e-6` and `maxiters = 100`; `init`, `step!` and `solve!` go through
it step by step. The solution's `original` is a [`SampleReport`](@ref).

# Example
```jldoctest
julia> using HomoJL

julia> cosine!(du, u, p) = (du .= cos.(u) .- u);

julia> sol = solve(NonlinearProblem(cosine!, [1.0 0.5]), SamplewisePicard(samples = 2); abstol = 1e-9, reltol = 1e-9);

julia> round.(sol.u; digits = 5)
1×2 Matrix{Float64}:
 0.73909  0.73909

julia> sol.original.converged
2-element Vector{Bool}:
 1
 1
```
"""
Base.@kwdef struct SamplewisePicard <: SciMLBase.AbstractNonlinearAlgorithm
    samples::Int = 1
    damping::Float64 = 0.0

    function SamplewisePicard(samples, damping)
        require(0 <= damping < 1, "damping must lie in [0, 1), got $damping")
        return new(samples, damping)
    end
end

"""
    SamplewiseAnderson(; samples = 1, memory = 6, mixing = 1, regularization = 1e-8)

Anderson acceleration, each sample by itself: the combination of the last iterates whose residuals cancel best. Problems,
keywords and solutions are those of [`SamplewisePicard`](@ref).

# Fields
- `memory`: how many iterates are combined.
- `mixing`: in (0, 1]; how much of u + f(u) rather than u enters.
- `regularization`: added to the diagonal of the scaled least-squares problem.

References: Anderson (1965), J. ACM 12(4); Walker, Ni (2011), SIAM J. Numer. Anal. 49(4).
"""
Base.@kwdef struct SamplewiseAnderson <: SciMLBase.AbstractNonlinearAlgorithm
    samples::Int = 1
    memory::Int = 6
    mixing::Float64 = 1.0
    regularization::Float64 = 1.0e-8

    function SamplewiseAnderson(samples, memory, mixing, regularization)
        require(memory >= 1, "memory must be at least 1, got $memory")
        require(0 < mixing <= 1, "mixing must lie in (0, 1], got $mixing")
        require(regularization >= 0, "regularization must be >= 0, got $regularization")
        return new(samples, memory, mixing, regularization)
    end
end

"""
    Samplewise(method; samples = 1)

A method of NonlinearSolve, or SteadyStateDiffEq's `DynamicSS`, on a batch: all samples are one system, and each ends at its own
best iterate, when it has converged by itself. Problems, keywords and solutions are those of [`SamplewisePicard`](@ref).

Methods with a dense Jacobian ask for it block by block, of which one product gives a column of every sample, up to 4,096
unknowns; those with a matrix-free linear solver ask for products. The products are the problem's `jvp`, or finite differences.
"""
struct Samplewise{M} <: SciMLBase.AbstractNonlinearAlgorithm
    method::M
    samples::Int
end

Samplewise(method; samples = 1) = Samplewise(method, samples)

const AnySamplewise = Union{SamplewisePicard, SamplewiseAnderson, Samplewise}

name(algorithm::AnySamplewise) = String(nameof(typeof(algorithm)))
name(algorithm::Samplewise) = String(nameof(typeof(algorithm.method)))

"""
How the samples of a batch ended.

# Fields
- `residuals`: norm(f) / norm(u + f) of each sample at its value.
- `iterations`: of each sample.
- `converged`: which samples met the tolerance.
- `ending`: the worst of the samples' ends: `:success`, `:max_steps`, `:stalled`, `:step_too_small` or `:diverged`.
- `message`: one line on what happened and what to try; empty on success.
- `n_jvp`: Jacobian-vector products.
"""
struct SampleReport
    residuals::Vector{Float64}
    iterations::Vector{Int}
    converged::Vector{Bool}
    ending::Symbol
    message::String
    n_jvp::Int
end

"""
A map g!(out, z) = z + f(z) on a batch, seen as a matrix with a column for each sample; counts its calls.

The types of `g!` and of its product `jvp!(out, v, z)` are deliberately unknown to the compiler, as that of the field in
[`CountedField`](@ref HomoJL.CountedField).
"""
mutable struct CountedMap{N}
    g!::Any
    jvp!::Any
    shape::NTuple{N, Int}
    samples::Int
    calls::Int
    products::Int
    held::Any  # a row of Bool with the samples that are not evaluated any more; `nothing`: all are
end

"g at z into `out`; both arrays of as many elements as the batch, in any shape."
function apply!(map::CountedMap, out, z)
    map.calls += 1
    map.g!(reshape(out, map.shape), reshape(z, map.shape))
    isnothing(map.held) || (columns(map, out) .= ifelse.(map.held, columns(map, z), columns(map, out)))
    return out
end

"(dg/dz) v into `out`."
function push_forward!(map::CountedMap, out, v, z)
    map.products += 1
    map.jvp!(reshape(out, map.shape), reshape(v, map.shape), reshape(z, map.shape))
    isnothing(map.held) || (columns(map, out) .= ifelse.(map.held, zero(eltype(out)), columns(map, out)))
    return out
end

columns(map::CountedMap, z) = reshape(z, :, map.samples)

"Euclidean norms of a matrix's columns, on the host."
column_norms(x) = Float64.(Array(vec(sqrt.(sum(abs2, x; dims = 1)))))

"A row of Bool where the matrix x is, to broadcast with it."
row_like(x, flags) = copyto!(similar(x, Bool, 1, length(flags)), Vector{Bool}(flags))

"Residuals, best iterates and ends of all samples."
mutable struct Progress{M <: AbstractMatrix}
    name::String
    rtol::Float64
    atol::Float64
    maxiters::Int
    best::M
    active::Vector{Bool}
    score::Vector{Float64}  # residual over what is tolerated, at the best iterate
    ratio::Vector{Float64}  # residual over norm(g(z)), there
    mark::Vector{Float64}   # the score that has to be undercut to count as progress
    marked_at::Vector{Int}
    iterations::Vector{Int}
    endings::Vector{Symbol}
end

function Progress(name::String, z::AbstractMatrix, rtol, atol, maxiters)
    require_tolerances(rtol, atol, maxiters)
    count = size(z, 2)
    return Progress(
        name, Float64(rtol), Float64(atol), Int(maxiters), copy(z), fill(true, count), fill(Inf, count), fill(NaN, count),
        fill(Inf, count), zeros(Int, count), zeros(Int, count), fill(:max_steps, count),
    )
end

finished(progress::Progress) = !any(progress.active)

"""
    update!(progress, iteration, z, residual, norm)

Take note of the iterates `z`, a matrix, where norm(g(z) - z) and norm(g(z)) of each sample have been found.
"""
function update!(progress::Progress, iteration::Int, z, residual::Vector{Float64}, norm::Vector{Float64})
    (; active, score, ratio, mark, marked_at) = progress
    better = falses(length(active))
    for i in eachindex(active)
        active[i] || continue
        if !(isfinite(residual[i]) && isfinite(norm[i]))
            stop!(progress, i, :diverged, iteration)
            continue
        end
        new_score = residual[i] == 0 ? 0.0 : residual[i] / (progress.atol + progress.rtol * norm[i])
        better[i] = new_score < score[i]
        if better[i]
            score[i], ratio[i] = new_score, residual[i] == 0 ? 0.0 : residual[i] / norm[i]
            new_score < 0.999 * mark[i] && ((mark[i], marked_at[i]) = (new_score, iteration))
        end
        if score[i] <= 1
            stop!(progress, i, :success, iteration)
        elseif iteration - marked_at[i] >= max(PATIENCE, progress.maxiters ÷ 10)
            stop!(progress, i, :stalled, iteration)
        end
    end
    if all(better)
        copyto!(progress.best, z)
    elseif any(better)
        progress.best .= ifelse.(row_like(progress.best, better), z, progress.best)
    end
    return nothing
end

function stop!(progress::Progress, i::Int, ending::Symbol, iteration::Int)
    progress.active[i] || return nothing
    progress.active[i], progress.endings[i], progress.iterations[i] = false, ending, iteration
    return nothing
end

"All samples that are still at work end here, at their best iterates."
stop!(progress::Progress, ending::Symbol, iteration::Int) =
    foreach(i -> stop!(progress, i, ending, iteration), eachindex(progress.active))

"The report; `first` is the number of the first sample in its message."
function report(progress::Progress, map::CountedMap, first::Int = 1)
    (; endings, ratio, iterations) = progress
    converged = Vector{Bool}(endings .== :success)
    made(ending, message) = SampleReport(ratio, iterations, converged, ending, message, map.products)
    all(converged) && return made(:success, "")
    grave = (:diverged, :step_too_small, :stalled, :max_steps)
    ending = grave[something(findfirst(in(endings), grave), length(grave))]
    missed = findall(!, converged)
    place = if ending === :diverged
        worst = something(findfirst(==(:diverged), endings), 1)
        at = iterations[worst] == 0 ? "at z0" : "after $(iterations[worst]) iterations"
        "NaN or infinity in z or f(z) of sample $(worst + first - 1), $at"
    else
        worst = missed[argmax([isnan(ratio[i]) ? Inf : ratio[i] for i in missed])]
        @sprintf(
            "sample %d is the worst, with residual %.2g after %d iterations, rtol %.2g",
            worst + first - 1, ratio[worst], iterations[worst], progress.rtol
        )
    end
    other = progress.name in ("NewtonKrylov", "NewtonRaphson") ? "Relaxation()" : "NewtonKrylov()"
    advice = Dict(
        :diverged => "look at the map there, or try Anderson(), more damping or another z0",
        :step_too_small => "loosen rtol and atol, use Float64, or suspect a map that is not smooth",
        :stalled => "loosen rtol and atol, use Float64, or try another algorithm such as $other",
        :max_steps => "raise max_steps (now $(progress.maxiters)), loosen rtol and atol, or try another algorithm",
    )[ending]
    counts = "$(length(missed)) of $(length(endings)) samples"
    return made(ending, "$(progress.name): $(SENTENCES[ending]) ($counts; $place); $advice")
end

"""
Note the start of a method that solves all samples as one system; whether there is anything left to do.

A sample that is not finite there would spoil the norms of all: from now on it is its own equilibrium.
"""
function start!(map::CountedMap, z, progress::Progress)
    gz = apply!(map, similar(z), z)
    update!(progress, 0, z, column_norms(gz .- z), column_norms(gz))
    bad = progress.endings .== :diverged
    if any(bad)
        map.held = row_like(z, bad)
        z .= ifelse.(map.held, zero(eltype(z)), z)
    end
    return !finished(progress)
end

"""
    search!(algorithm, map, z, progress)

Iterate from the matrix `z`, which may be overwritten, until every sample of `progress` has ended. Those of
[`Samplewise`](@ref) are defined with NonlinearSolve and SteadyStateDiffEq.
"""
function search!(algorithm::Samplewise, map, z, progress)
    kind = typeof(algorithm.method)
    throw(ArgumentError("no way to solve with a $kind: say `using NonlinearSolve`, or `using SteadyStateDiffEq` for DynamicSS"))
end

"Find the equilibria of a map g!(out, z) from z0 on; returns where the samples ended, like z0, and their report."
function equilibrium(
        @nospecialize(g!), z0::AbstractArray, algorithm::AnySamplewise, name::String = HomoJL.name(algorithm);
        jvp! = nothing, reltol = 1.0e-4, abstol = 1.0e-6, maxiters = 100, first_sample::Int = 1
    )
    map, z, progress = prepared(g!, jvp!, z0, algorithm, name, reltol, abstol, maxiters)
    search!(algorithm, map, z, progress)
    return reshape(progress.best, size(z0)), report(progress, map, first_sample), map.calls
end

function prepared(@nospecialize(g!), jvp!, z0::AbstractArray, algorithm, name::String, reltol, abstol, maxiters)
    require_state(z0)
    samples = algorithm.samples
    ok = samples >= 1 && length(z0) % samples == 0
    require(ok, "samples must divide the $(length(z0)) elements of u0, got $samples")
    z = copyto!(similar(z0, length(z0) ÷ samples, samples), z0)
    return CountedMap(g!, jvp!, size(z0), samples, 0, 0, nothing), z, Progress(name, z, reltol, abstol, maxiters)
end

# ---- SciML's problems ----

const EquilibriumProblem = Union{NonlinearProblem, SteadyStateProblem}

"The residual of a problem, in place."
function residual!(prob::EquilibriumProblem, du, u)
    arguments = prob isa SteadyStateProblem ? (prob.p, Inf) : (prob.p,)
    SciMLBase.isinplace(prob) ? prob.f(du, u, arguments...) : copyto!(du, prob.f(u, arguments...))
    return du
end

image(prob::EquilibriumProblem) = (out, z) -> (residual!(prob, out, z); out .+= z; nothing)

function image_product(prob::EquilibriumProblem)
    isnothing(prob.f.jvp) && return nothing
    arguments = prob isa SteadyStateProblem ? (prob.p, Inf) : (prob.p,)
    return (out, v, z) -> (prob.f.jvp(out, v, z, arguments...); out .+= v; nothing)
end

function SciMLBase.solve(
        prob::EquilibriumProblem, algorithm::AnySamplewise; reltol = 1.0e-4, abstol = 1.0e-6, maxiters = 100
    )
    value, report, calls = equilibrium(image(prob), prob.u0, algorithm; jvp! = image_product(prob), reltol, abstol, maxiters)
    return solution(prob, algorithm, value, report, calls)
end

function solution(prob, algorithm, value, report::SampleReport, calls::Int)
    resid = residual!(prob, similar(value), value)
    stats = SciMLBase.NLStats(calls, 0, 0, 0, maximum(report.iterations))
    return SciMLBase.build_solution(
        prob, algorithm, value, resid; retcode = RETURN_CODES[report.ending], original = report, stats
    )
end
