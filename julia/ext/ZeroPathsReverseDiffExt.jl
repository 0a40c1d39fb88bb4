module ZeroPathsReverseDiffExt

import ZeroPaths
import ReverseDiff

function ZeroPaths.pullback!(::Val{:ReverseDiff}, gradient, parameter_gradients, f!, u, p, t, cotangent)
    single = p isa AbstractArray
    parameters = isnothing(p) ? () : single ? (p,) : p
    function pulled(x, q...)
        # In place, into an array of tracked numbers.
        out = similar(x, eltype(x))
        again = isnothing(p) ? nothing : single ? only(q) : q
        isnothing(t) ? f!(out, x, again) : f!(out, x, again, t)
        return sum(cotangent .* out)
    end
    ReverseDiff.gradient!((gradient, parameter_gradients...), pulled, (u, parameters...))
    return nothing
end

end
