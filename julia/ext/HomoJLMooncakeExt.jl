module HomoJLMooncakeExt

import HomoJL
import Mooncake

"The product of the cotangent with f!, whose value goes into `out`; its gradient is the vector-Jacobian product."
function pulled(f!, out, u, p, t, cotangent)
    isnothing(t) ? f!(out, u, p) : f!(out, u, p, t)
    total = zero(eltype(out))
    for i in eachindex(out, cotangent)
        total += cotangent[i] * out[i]
    end
    return total
end

# Of each kind of arguments, with the sizes; compiling the derivative takes some seconds.
const CACHES = Dict{Any, Any}()

sizes(p::Tuple) = map(size, p)
sizes(p::AbstractArray) = size(p)
sizes(p) = nothing

function HomoJL.pullback!(::Val{:Mooncake}, gradient, parameter_gradients, f!, u, p, t, cotangent)
    out = similar(u)
    # Plain arrays, which reshaped memory of PyTorch's may not be.
    arguments = (f!, out, collect(u), plain(p), t, collect(cotangent))
    cache = get!(() -> Mooncake.prepare_gradient_cache(pulled, arguments...), CACHES, (typeof(arguments), size(u), sizes(p)))
    _, gradients = Mooncake.value_and_gradient!!(cache, pulled, arguments...)
    copyto!(gradient, gradients[4])
    for (i, target) in enumerate(parameter_gradients)
        copyto!(target, p isa Tuple ? gradients[5][i] : gradients[5])
    end
    return nothing
end

plain(p::AbstractArray) = collect(p)
plain(p::Tuple) = map(collect, p)
plain(p) = p

end
