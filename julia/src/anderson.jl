# The two methods that treat each sample by itself, as an iteration that can be taken step by step.

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

SamplewiseCache(prob, algorithm, map, z, progress) =
    SamplewiseCache(prob, algorithm, map, z, similar(z), similar(z), Memory(algorithm, z), progress, 0)

function SciMLBase.init(
        prob::EquilibriumProblem, algorithm::Union{SamplewisePicard, SamplewiseAnderson};
        reltol = 1.0e-4, abstol = 1.0e-6, maxiters = 100
    )
    map, z, progress = prepared(
        image(prob), image_product(prob), prob.u0, algorithm, name(algorithm), reltol, abstol, maxiters
    )
    return SamplewiseCache(prob, algorithm, map, z, progress)
end

function SciMLBase.step!(cache::SamplewiseCache)
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

function SciMLBase.solve!(cache::SamplewiseCache)
    while !finished(cache.progress)
        SciMLBase.step!(cache)
    end
    value = reshape(cache.progress.best, size(cache.prob.u0))
    return solution(cache.prob, cache.algorithm, value, report(cache.progress, cache.map), cache.map.calls)
end

function search!(algorithm::Union{SamplewisePicard, SamplewiseAnderson}, map::CountedMap, z, progress::Progress)
    cache = SamplewiseCache(nothing, algorithm, map, z, progress)
    while !finished(progress)
        SciMLBase.step!(cache)
    end
    return nothing
end

Memory(::SamplewisePicard, z) = nothing

advance!(::Nothing, algorithm::SamplewisePicard, z, gz, r) = (z .= gz .- eltype(z)(algorithm.damping) .* r)

"""
Anderson's history: differences of residuals and of images z + mixing r, (elements, differences, samples), in a ring.

The small systems are solved on the host in Float64.
"""
mutable struct AndersonMemory{A <: AbstractArray, M <: AbstractMatrix}
    differences::A
    images::A
    gram::Array{Float64, 3}
    image::M
    image_before::M
    r_before::M
    scratch::M
    count::Int
end

function Memory(algorithm::SamplewiseAnderson, z)
    n, samples = size(z)
    # One iterate fewer than are combined; a memory of 1 leaves nothing to combine.
    memory = algorithm.memory - 1
    block() = similar(z, n, memory, samples)
    return AndersonMemory(
        block(), block(), zeros(memory, memory, samples), similar(z), similar(z), similar(z), similar(z), -1
    )
end

function advance!(memory::AndersonMemory, algorithm::SamplewiseAnderson, z, gz, r)
    (; image, image_before, r_before, differences, images, gram) = memory
    image .= gz .- eltype(z)(1 - algorithm.mixing) .* r
    memory.count += 1
    if memory.count == 0 || size(gram, 1) == 0
        copyto!(z, image)
    else
        slot = mod1(memory.count, size(gram, 1))
        count = min(memory.count, size(gram, 1))
        view(differences, :, slot, :) .= r .- r_before
        view(images, :, slot, :) .= image .- image_before
        row = inner_products(memory, count, view(differences, :, slot, :))
        gram[slot, 1:count, :] = row
        gram[1:count, slot, :] = row
        right = inner_products(memory, count, r)
        add_combination!(copyto!(z, image), memory, least_squares(gram, right, count, algorithm, eltype(z)))
    end
    copyto!(r_before, r)
    copyto!(image_before, image)
    return nothing
end

"Minus the weights of the differences that reduce each sample's residual most, (count, samples)."
function least_squares(gram, right, count::Int, algorithm::SamplewiseAnderson, ::Type{T}) where {T}
    floor = max(algorithm.regularization, 10 * Float64(eps(T)))
    weights = zero(right)
    for s in axes(right, 2)
        a = gram[1:count, 1:count, s]
        scale = [1 / sqrt(max(a[i, i], floatmin(Float64))) for i in 1:count]
        a .*= scale .* scale'
        b = scale .* view(right, :, s)
        # A sample that is done goes on with the others, and may come to anything.
        all(isfinite, a) && all(isfinite, b) || continue
        weights[:, s] = -scale .* ((a + floor * I) \ b)
    end
    return weights
end

"The inner products of the first `count` differences of each sample with its column of x: (count, samples), on the host."
function inner_products(memory::AndersonMemory, count::Int, x)
    (; differences, scratch) = memory
    products = zeros(count, size(x, 2))
    for j in 1:count
        scratch .= view(differences, :, j, :) .* x
        products[j, :] = Array(vec(sum(scratch; dims = 1)))
    end
    return products
end

function inner_products(memory::AndersonMemory{<:Array}, count::Int, x)
    products = zeros(count, size(x, 2))
    for s in axes(x, 2)
        products[:, s] = view(memory.differences, :, 1:count, s)' * view(x, :, s)
    end
    return products
end

"z += the images' differences of each sample times its column of `weights`, (count, samples), on the host."
function add_combination!(z, memory::AndersonMemory, weights)
    on_device = copyto!(similar(z, size(weights)), eltype(z).(weights))
    for j in axes(weights, 1)
        z .+= view(on_device, j:j, :) .* view(memory.images, :, j, :)
    end
    return z
end

function add_combination!(z, memory::AndersonMemory{<:Array}, weights)
    count = size(weights, 1)
    for s in axes(z, 2)
        mul!(view(z, :, s), view(memory.images, :, 1:count, s), eltype(z).(view(weights, :, s)), true, true)
    end
    return z
end
