module ZeroPathsMooncakeExt

import ZeroPaths
import Mooncake
using LinearAlgebra: dot

"The product of the cotangent with f!, whose value goes into `out`; its gradient is the vector-Jacobian product."
function pulled(f!, out, u, p, t, cotangent)
    isnothing(t) ? f!(out, u, p) : f!(out, u, p, t)
    return dot(cotangent, out)
end

# Of each kind of arguments, with the sizes; compiling the derivative takes some seconds.
const CACHES = Dict{Any, Any}()

sizes(p::Tuple) = map(size, p)
sizes(p::AbstractArray) = size(p)
sizes(p) = nothing

function ZeroPaths.pullback!(::Val{:Mooncake}, gradient, parameter_gradients, f!, u, p, t, cotangent)
    out = similar(plain(u))
    arguments = (f!, out, plain(u), plain(p), t, plain(cotangent))
    cache = get!(() -> Mooncake.prepare_gradient_cache(pulled, arguments...), CACHES, (typeof(arguments), size(u), sizes(p)))
    _, gradients = Mooncake.value_and_gradient!!(cache, pulled, arguments...)
    copyto!(gradient, gradients[4])
    for (i, target) in enumerate(parameter_gradients)
        copyto!(target, p isa Tuple ? gradients[5][i] : gradients[5])
    end
    return nothing
end

plain(p::Array) = p
plain(p::AbstractArray) = collect(p)
plain(p::Tuple) = map(plain, p)
plain(p) = p

end
