# How solves end: symbols inside, SciML's return codes outside.

require(condition::Bool, message::String) = condition || throw(ArgumentError(message))

const RETURN_CODES = Dict(
    :success => ReturnCode.Success, :event => ReturnCode.Terminated, :diverged => ReturnCode.Unstable,
    :step_too_small => ReturnCode.DtLessThanMin, :max_steps => ReturnCode.MaxIters, :stalled => ReturnCode.Stalled,
    :left_bounds => ReturnCode.Failure, :returned => ReturnCode.Failure, :fold => ReturnCode.ConvergenceFailure,
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
