# Equilibria of a batch, each sample to its own end: what all methods share.

const PATIENCE = 30  # iterations in which there has to be progress; a tenth of maxiters if more
const FAR = 5.0  # norm(g(z)) relative to where it began, from which on a residual may be small by growth alone

"""
    SamplewisePicard(; samples = 1, damping = 0)

u <- u + (1 - damping) f(u), each sample by itself: converges where u + f(u) contracts. `damping` lies in [0, 1).

For a `NonlinearProblem` or a `SteadyStateProblem` whose state is a batch of that many `samples`, equal and contiguous
blocks in memory (the columns of a matrix). A sample has converged when norm(f) <= abstol + reltol norm(u + f), Euclidean norms
over that sample. `solve` takes `reltol = 1e-4`, `abstol = 1e-6` and `maxiters = 100`; `init`, `step!` and `solve!` go through
it step by step. The solution's `original` is a [`SampleReport`](@ref).

# Example
```jldoctest
julia> using ZeroPaths

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

Anderson acceleration, each sample by itself: the combination of the last `memory` iterates whose residuals cancel best.
`mixing`, in (0, 1], is how much of u + f(u) rather than u enters; `regularization` is added to the diagonal of the scaled
least-squares problem. Problems, keywords and solutions are those of [`SamplewisePicard`](@ref).

References: Anderson (1965), J. ACM 12(4); Walker, Ni (2011), SIAM J. Numer. Anal. 49(4).

# Example
```jldoctest
julia> using ZeroPaths

julia> cosine(u, p) = cos.(u) .- u;

julia> sol = solve(NonlinearProblem(cosine, [1.0 0.5]), SamplewiseAnderson(samples = 2); reltol = 1e-8);

julia> successful_retcode(sol), maximum(sol.original.iterations) < 10
(true, true)
```
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

# Example
```jldoctest
julia> using ZeroPaths, NonlinearSolve

julia> prob = NonlinearProblem((u, p) -> cos.(u) .- u, [1.0 0.5]);

julia> sol = solve(prob, Samplewise(NewtonRaphson(); samples = 2); reltol = 1e-10);

julia> sol.retcode, length(sol.original.iterations)
(SciMLBase.ReturnCode.Success, 2)
```
"""
struct Samplewise{M} <: SciMLBase.AbstractNonlinearAlgorithm
    method::M
    samples::Int
end

Samplewise(method; samples = 1) = Samplewise(method, samples)

const Stepwise = Union{SamplewisePicard, SamplewiseAnderson}
const AnySamplewise = Union{Stepwise, Samplewise}

"""
How the samples of a batch ended.

# Fields
- `residuals`: norm(f) / norm(u + f) of each sample at its value.
- `iterations`: of each sample.
- `converged`: which samples met the tolerance.
- `endings`: how each ended: `:success`, `:max_steps`, `:stalled`, `:step_too_small` or `:diverged`; `ending`: the worst of them.
- `n_jvp`: Jacobian-vector products.
"""
struct SampleReport
    residuals::Vector{Float64}
    iterations::Vector{Int}
    converged::Vector{Bool}
    endings::Vector{Symbol}
    ending::Symbol
    n_jvp::Int
end

"""
A map g!(out, z) = z + f(z) on a batch, seen as a matrix with a column for each sample; counts its calls.

The types of `g!` and of its product `jvp!(out, v, z)` are deliberately unknown to the compiler, as that of the field in
[`CountedField`](@ref ZeroPaths.CountedField).
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

"""
Residuals, best iterates and ends of all samples.

A sample makes progress when its best score, the residual over what is tolerated, falls by a thousandth, and also when
norm(g(z)) grows by as much beyond all that it has been: a small start may have a long way to go.
"""
mutable struct Progress{M <: AbstractMatrix}
    rtol::Float64
    atol::Float64
    maxiters::Int
    best::M
    active::Vector{Bool}
    score::Vector{Float64}    # at the best iterate
    ratio::Vector{Float64}    # residual over norm(g(z)), there
    mark::Vector{Float64}     # the score that has to be undercut to count as progress
    largest::Vector{Float64}  # norm(g(z)) that has to be exceeded to count as progress
    marked_at::Vector{Int}
    far::Vector{Float64}      # norm(g(z)) from which on growth makes residuals small; NaN before the first
    residual::Vector{Float64} # the largest so far
    iterations::Vector{Int}
    endings::Vector{Symbol}
end

function Progress(z::AbstractMatrix, rtol, atol, maxiters)
    require_tolerances(rtol, atol, maxiters)
    all_of(x) = fill(x, size(z, 2))
    return Progress(
        Float64(rtol), Float64(atol), Int(maxiters), copy(z), all_of(true), all_of(Inf), all_of(NaN), all_of(Inf),
        all_of(0.0), all_of(0), all_of(NaN), all_of(0.0), all_of(0), all_of(:max_steps),
    )
end

finished(progress::Progress) = !any(progress.active)

"""
The residual of sample i as a multiple of what it may come to where norm(g(z)) is `norm`.

Far from where it began, g(z) may be large only because nothing holds it: growth makes any residual small beside it. There the
largest residual so far is what others are compared with, and none is smaller than what rounding leaves.
"""
function score!(progress::Progress, i::Int, residual::Float64, norm::Float64)
    isnan(progress.far[i]) && (progress.far[i] = FAR * (residual + norm))
    progress.residual[i] = max(progress.residual[i], residual)
    if norm > progress.far[i]
        residual = max(residual, eps(eltype(progress.best)) * norm)
        norm = min(norm, progress.residual[i])
    end
    return residual == 0 ? 0.0 : residual / (progress.atol + progress.rtol * norm)
end

"Take note of the iterates `z`, a matrix, where norm(g(z) - z) and norm(g(z)) of each sample have been found."
function update!(progress::Progress, iteration::Int, z, residual::Vector{Float64}, norm::Vector{Float64})
    (; active, score, ratio, mark, largest, marked_at) = progress
    better = falses(length(active))
    for i in eachindex(active)
        active[i] || continue
        if !isfinite(residual[i] + norm[i])
            stop!(progress, i, :diverged, iteration)
            continue
        end
        new_score = score!(progress, i, residual[i], norm[i])
        better[i] = new_score < score[i]
        if better[i]
            score[i], ratio[i] = new_score, residual[i] == 0 ? 0.0 : residual[i] / norm[i]
            new_score < 0.999 * mark[i] && ((mark[i], marked_at[i]) = (new_score, iteration))
        end
        norm[i] > 1.001 * largest[i] && ((largest[i], marked_at[i]) = (norm[i], iteration))
        score[i] <= 1 && stop!(progress, i, :success, iteration)
        iteration - marked_at[i] >= max(PATIENCE, progress.maxiters ÷ 10) && stop!(progress, i, :stalled, iteration)
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

function report(progress::Progress, map::CountedMap)
    (; endings, ratio, iterations) = progress
    worst = first(e for e in (:diverged, :step_too_small, :stalled, :max_steps, :success) if e in endings)
    return SampleReport(ratio, iterations, endings .== :success, endings, worst, map.products)
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

"Find the equilibria of a map g!(out, z) from z0 on; returns where the samples ended, like z0, their report, and the calls."
function equilibrium(@nospecialize(g!), z0::AbstractArray, algorithm::AnySamplewise; jvp! = nothing, tolerances...)
    return found!(SamplewiseCache(nothing, g!, jvp!, z0, algorithm; tolerances...), z0)
end

# ---- SciML's problems ----

const EquilibriumProblem = Union{NonlinearProblem, SteadyStateProblem}

arguments(prob::NonlinearProblem) = (prob.p,)
arguments(prob::SteadyStateProblem) = (prob.p, Inf)

"The residual of a problem, in place."
function residual!(prob::EquilibriumProblem, du, u)
    SciMLBase.isinplace(prob) ? prob.f(du, u, arguments(prob)...) : copyto!(du, prob.f(u, arguments(prob)...))
    return du
end

"A search for equilibria on its way, for `step!` and `solve!`: see [`SamplewisePicard`](@ref)."
mutable struct SamplewiseCache{P, A, M <: CountedMap, Z <: AbstractMatrix, H}
    prob::P
    algorithm::A
    map::M
    z::Z
    gz::Z
    r::Z
    memory::H
    progress::Progress{Z}
    iteration::Int
end

function SamplewiseCache(
        prob, @nospecialize(g!), @nospecialize(jvp!), z0::AbstractArray, algorithm;
        reltol = 1.0e-4, abstol = 1.0e-6, maxiters = 100
    )
    require_state(z0)
    samples = algorithm.samples
    ok = samples >= 1 && length(z0) % samples == 0
    require(ok, "samples must divide the $(length(z0)) elements of u0, got $samples")
    z = copyto!(similar(z0, length(z0) ÷ samples, samples), z0)
    map, progress = CountedMap(g!, jvp!, size(z0), samples, 0, 0, nothing), Progress(z, reltol, abstol, maxiters)
    return SamplewiseCache(prob, algorithm, map, z, similar(z), similar(z), Memory(algorithm, z), progress, 0)
end

function SciMLBase.init(prob::EquilibriumProblem, algorithm::AnySamplewise; tolerances...)
    image!(out, z) = (residual!(prob, out, z); out .+= z; nothing)
    product!(out, v, z) = (prob.f.jvp(out, v, z, arguments(prob)...); out .+= v; nothing)
    return SamplewiseCache(prob, image!, isnothing(prob.f.jvp) ? nothing : product!, prob.u0, algorithm; tolerances...)
end

SciMLBase.solve(prob::EquilibriumProblem, algorithm::AnySamplewise; tolerances...) = solve!(init(prob, algorithm; tolerances...))

function SciMLBase.solve!(cache::SamplewiseCache)
    prob = cache.prob
    value, report, calls = found!(cache, prob.u0)
    return SciMLBase.build_solution(
        prob, cache.algorithm, value, residual!(prob, similar(value), value); retcode = RETURN_CODES[report.ending],
        original = report, stats = SciMLBase.NLStats(calls, 0, 0, 0, maximum(report.iterations)),
    )
end

function found!(cache::SamplewiseCache, z0)
    search!(cache)
    return reshape(cache.progress.best, size(z0)), report(cache.progress, cache.map), cache.map.calls
end

search!(cache::SamplewiseCache) = search!(cache.algorithm, cache.map, cache.z, cache.progress)

function search!(cache::SamplewiseCache{<:Any, <:Stepwise})
    while !finished(cache.progress)
        SciMLBase.step!(cache)
    end
    return nothing
end

function SciMLBase.step!(cache::SamplewiseCache{<:Any, <:Stepwise})
    (; map, z, gz, r, progress) = cache
    finished(progress) && return nothing
    cache.iteration > 0 && advance!(cache.memory, cache.algorithm, z, gz, r)
    apply!(map, gz, z)
    r .= gz .- z
    update!(progress, cache.iteration, z, column_norms(r), column_norms(gz))
    cache.iteration == progress.maxiters && stop!(progress, :max_steps, cache.iteration)
    cache.iteration += 1
    return nothing
end
