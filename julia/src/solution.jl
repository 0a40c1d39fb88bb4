# The result of a solve: states, status and statistics; data, no computation.

"""
How a solve ended: `SUCCESS`, `DIVERGED`, `STEP_TOO_SMALL`, `MAX_STEPS`, `STALLED`, `LEFT_BOUNDS`, `RETURNED` or `FOLD`;
`HomoJL.sentence` says each in words.
"""
@enum Status SUCCESS DIVERGED STEP_TOO_SMALL MAX_STEPS STALLED LEFT_BOUNDS RETURNED FOLD

"A [`Status`](@ref): the solve reached its end."
SUCCESS

"A [`Status`](@ref): the state or its derivative is no longer finite."
DIVERGED

"A [`Status`](@ref): the step size fell below its smallest value."
STEP_TOO_SMALL

"A [`Status`](@ref): the largest number of steps was taken."
MAX_STEPS

"A [`Status`](@ref): the residual no longer falls."
STALLED

"A [`Status`](@ref): the path left its bounds."
LEFT_BOUNDS

"A [`Status`](@ref): the path came back to lambda = 0."
RETURNED

"A [`Status`](@ref): the path turns back in lambda."
FOLD

"""
    sentence(status::Status) -> String

The status in words, as messages show it.
"""
function sentence(status::Status)
    status === SUCCESS && return "the solve reached its end"
    status === DIVERGED && return "the state or its derivative is no longer finite"
    status === STEP_TOO_SMALL && return "the step size fell below its smallest value"
    status === MAX_STEPS && return "the largest number of steps was taken"
    status === STALLED && return "the residual no longer falls"
    status === LEFT_BOUNDS && return "the path left its bounds"
    status === RETURNED && return "the path came back to lambda = 0"
    return "the path turns back in lambda"
end

"""
What a solve cost.

# Fields
- `nfe`: evaluations of the field, counted at the field itself, rejected steps included.
- `n_accepted`, `n_rejected`: steps.
- `seconds`: wall time of the solve; on a GPU without waiting for kernels that are still queued.
- `n_jvp`: Jacobian-vector products, whether given or by finite differences; the evaluations of the latter are in `nfe`.
"""
struct Stats
    nfe::Int
    n_accepted::Int
    n_rejected::Int
    seconds::Float64
    n_jvp::Int
end

Stats(nfe, n_accepted, n_rejected, seconds) = Stats(nfe, n_accepted, n_rejected, seconds, 0)

"""
The accepted steps of a solve, exactly as they were taken.

# Fields
- `starts`: times at which the steps start, n numbers.
- `sizes`: signed sizes of the steps, n numbers.
- `save_steps`: for each save time after the first, the index in 1:n of the step that it lies in.
- `save_fractions`: where in that step, in (0, 1]; exactly 1 means the end of the step.

Times are `Float64`, in the unit of time of the problem.
"""
struct StepSequence
    starts::Vector{Float64}
    sizes::Vector{Float64}
    save_steps::Vector{Int}
    save_fractions::Vector{Float64}
end

StepSequence() = StepSequence(Float64[], Float64[], Int[], Float64[])

Base.length(steps::StepSequence) = length(steps.starts)

"""
Where an [`Event`](@ref) took place: its position `index` in `events`, the time `t`, and the state `u` there.
"""
struct EventPoint{A <: AbstractArray}
    index::Int
    t::Float64
    u::A
end

"""
What [`integrate`](@ref) returns. With `dense = true` it can be called: `sol(t)` is the state at any time between the first
and the last of `sol.ts`, a new array, and `sol(out, t)` writes it into `out`; both by the method's continuous extension.

# Fields
- `ts`: save times that were reached; after a solve that stopped early, also the time that it stopped at.
- `us`: the states at those times, arrays of u0's shape, element type and kind of array.
- `status`: how the solve ended; nothing but `SUCCESS` reaches the caller unless `throw = false`.
- `stats`: what it cost, a [`Stats`](@ref).
- `steps`: the accepted steps, a [`StepSequence`](@ref).
- `states`: with `keep_states = true` what `keep` made of the state at the start of each accepted step, else empty.
- `events`: the events in the order in which they took place, a vector of [`EventPoint`](@ref).
- `message`: one line on what happened and what to try; empty on success.
"""
struct Solution{A <: AbstractArray}
    ts::Vector{Float64}
    us::Vector{A}
    status::Status
    stats::Stats
    steps::StepSequence
    states::Vector
    events::Vector{EventPoint{A}}
    interpolant::Any
    message::String
end

(sol::Solution)(t::Real) = sol(similar(sol.us[1]), t)

function (sol::Solution)(out::AbstractArray, t::Real)
    require(!isnothing(sol.interpolant), "the solution is known at its save times alone; integrate with dense = true")
    first_time, last_time = minmax(sol.ts[1], sol.ts[end])
    require(first_time <= t <= last_time, "the solution reaches from $first_time to $last_time, not to t = $t")
    return evaluate!(out, sol.interpolant, Float64(t))
end

"""
What [`fixed_point`](@ref) returns.

# Fields
- `value`: the equilibria, or where a sample did not converge its best iterate; z0's shape, element type and kind of array.
- `residuals`: norm(f(z) - z) / norm(f(z)) of each sample at `value`.
- `iterations`: of each sample.
- `converged`: which samples met the tolerance.
- `status`: `SUCCESS` if all did; nothing else reaches the caller unless `throw = false`.
- `stats`: what it cost, a [`Stats`](@ref).
- `message`: one line on what happened and what to try; empty on success.
"""
struct FixedPointSolution{A <: AbstractArray}
    value::A
    residuals::Vector{Float64}
    iterations::Vector{Int}
    converged::Vector{Bool}
    status::Status
    stats::Stats
    message::String
end

"""
    SolveError(solution)

Thrown when a solve does not reach its end; `solution` is how far it came.
"""
struct SolveError{S} <: Exception
    solution::S
end

Base.showerror(io::IO, e::SolveError) = print(io, "SolveError: ", e.solution.message)
