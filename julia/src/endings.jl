# How solves end: symbols inside, SciML's return codes outside, and a sentence for each.

require(condition::Bool, message::String) = condition || throw(ArgumentError(message))

const RETURN_CODES = Dict(
    :success => ReturnCode.Success, :event => ReturnCode.Terminated, :diverged => ReturnCode.Unstable,
    :step_too_small => ReturnCode.DtLessThanMin, :max_steps => ReturnCode.MaxIters, :stalled => ReturnCode.Stalled,
    :left_bounds => ReturnCode.Failure, :returned => ReturnCode.Failure, :fold => ReturnCode.ConvergenceFailure,
)

const SENTENCES = Dict(
    :success => "the solve reached its end",
    :event => "an event ended the solve",
    :diverged => "the state or its derivative is no longer finite",
    :step_too_small => "the step size fell below its smallest value",
    :max_steps => "the largest number of steps was taken",
    :stalled => "the residual no longer falls",
    :left_bounds => "the path left its bounds",
    :returned => "the path came back to lambda = 0",
    :fold => "the path turns back in lambda",
)

function require_tolerances(reltol, abstol, maxiters)
    require(isfinite(reltol) && reltol >= 0, "reltol must be a finite number >= 0, got $reltol")
    require(isfinite(abstol) && abstol >= 0, "abstol must be a finite number >= 0, got $abstol")
    require(reltol + abstol > 0, "reltol and abstol must not both be zero")
    return require(maxiters >= 1, "maxiters must be at least 1, got $maxiters")
end

function require_state(u0)
    T = eltype(u0)
    require(T === Float32 || T === Float64, "u0 must have elements of type Float32 or Float64, got $T; convert it first")
    return require(!isempty(u0), "u0 is empty: its size is $(size(u0))")
end

euclidean(x) = sqrt(Float64(sum(abs2, x)))
