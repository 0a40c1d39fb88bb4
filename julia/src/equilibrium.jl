# Equilibria of a batch of samples: what all methods share.

const PATIENCE = 30  # iterations in which the best residual has to fall by a thousandth; a tenth of max_steps if more

"""
A map f!(out, z) on a batch, seen as a matrix with a column for each sample; counts its calls.

The types of `f!` and `jvp!` are deliberately unknown to the compiler, as those of [`CountedField`](@ref) are.
"""
mutable struct CountedMap{N}
    f!::Any
    jvp!::Any
    shape::NTuple{N, Int}
    samples::Int
    calls::Int
    products::Int
    held::Any  # a row of Bool with the samples that are not evaluated any more; `nothing`: all are
end

"f at z into `out`; both arrays of as many elements as the batch, in any shape."
function apply!(map::CountedMap, out, z)
    map.calls += 1
    map.f!(reshape(out, map.shape), reshape(z, map.shape))
    isnothing(map.held) || (columns(map, out) .= ifelse.(map.held, columns(map, z), columns(map, out)))
    return out
end

"(df/dz) v into `out`."
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

"Residuals, best iterates and ends of all samples; the same rules as the PyTorch backend's."
mutable struct Progress{A <: AbstractFixedPointAlgorithm, M <: AbstractMatrix}
    algorithm::A
    best::M
    active::Vector{Bool}
    score::Vector{Float64}  # residual over what is tolerated, at the best iterate
    ratio::Vector{Float64}  # residual over norm(f(z)), there
    mark::Vector{Float64}   # the score that has to be undercut to count as progress
    marked_at::Vector{Int}
    iterations::Vector{Int}
    statuses::Vector{Status}
end

function Progress(algorithm::AbstractFixedPointAlgorithm, z::AbstractMatrix)
    count = size(z, 2)
    return Progress(
        algorithm, copy(z), fill(true, count), fill(Inf, count), fill(NaN, count), fill(Inf, count), zeros(Int, count),
        zeros(Int, count), fill(MAX_STEPS, count),
    )
end

finished(progress::Progress) = !any(progress.active)

"""
    update!(progress, iteration, z, residual, norm)

Take note of the iterates `z`, a matrix, where norm(f(z) - z) and norm(f(z)) of each sample have been found.
"""
function update!(progress::Progress, iteration::Int, z, residual::Vector{Float64}, norm::Vector{Float64})
    (; algorithm, active, score, ratio, mark, marked_at) = progress
    better = falses(length(active))
    for i in eachindex(active)
        active[i] || continue
        if !(isfinite(residual[i]) && isfinite(norm[i]))
            stop!(progress, i, DIVERGED, iteration)
            continue
        end
        new_score = residual[i] == 0 ? 0.0 : residual[i] / (algorithm.atol + algorithm.rtol * norm[i])
        better[i] = new_score < score[i]
        if better[i]
            score[i], ratio[i] = new_score, residual[i] == 0 ? 0.0 : residual[i] / norm[i]
            new_score < 0.999 * mark[i] && ((mark[i], marked_at[i]) = (new_score, iteration))
        end
        if score[i] <= 1
            stop!(progress, i, SUCCESS, iteration)
        elseif iteration - marked_at[i] >= max(PATIENCE, algorithm.max_steps ÷ 10)
            stop!(progress, i, STALLED, iteration)
        end
    end
    if all(better)
        copyto!(progress.best, z)
    elseif any(better)
        progress.best .= ifelse.(row_like(progress.best, better), z, progress.best)
    end
    return nothing
end

function stop!(progress::Progress, i::Int, status::Status, iteration::Int)
    progress.active[i] || return nothing
    progress.active[i], progress.statuses[i], progress.iterations[i] = false, status, iteration
    return nothing
end

"All samples that are still at work end here, at their best iterates."
stop!(progress::Progress, status::Status, iteration::Int) = foreach(i -> stop!(progress, i, status, iteration), eachindex(progress.active))

"The worst status among the samples, and one line on what happened and what to try; `first` is the number of the first sample."
function verdict(progress::Progress, first::Int)
    (; algorithm, statuses, ratio, iterations) = progress
    all(==(SUCCESS), statuses) && return SUCCESS, ""
    grave = (DIVERGED, STEP_TOO_SMALL, STALLED, MAX_STEPS)
    status = grave[findfirst(in(statuses), grave)]
    missed = findall(!=(SUCCESS), statuses)
    place = if status === DIVERGED
        worst = findfirst(==(DIVERGED), statuses)
        at = iterations[worst] == 0 ? "at z0" : "after $(iterations[worst]) iterations"
        "NaN or infinity in z or f(z) of sample $(worst + first - 1), $at"
    else
        worst = missed[argmax([isnan(ratio[i]) ? Inf : ratio[i] for i in missed])]
        @sprintf(
            "sample %d is the worst, with residual %.2g after %d iterations, rtol %.2g",
            worst + first - 1, ratio[worst], iterations[worst], algorithm.rtol
        )
    end
    advice = if status === DIVERGED
        "look at the map there, or try Anderson(), more damping or another z0"
    elseif status === STEP_TOO_SMALL
        "loosen rtol and atol, use Float64, or suspect a map that is not smooth"
    elseif status === STALLED
        other = algorithm isa NewtonKrylov ? "Relaxation()" : "NewtonKrylov()"
        "loosen rtol and atol, use Float64, or try another algorithm such as $other"
    else
        "raise max_steps (now $(algorithm.max_steps)), loosen rtol and atol, or try another algorithm"
    end
    counts = "$(length(missed)) of $(length(statuses)) samples"
    return status, "$(name(algorithm)): $(sentence(status)) ($counts; $place); $advice"
end

"""
    fixed_point(f!, z0, algorithm; samples = 1, jvp! = nothing, throw = true, first_sample = 1) -> FixedPointSolution

Solve z = f(z) for every sample of a batch.

# Arguments
- `f!`: map in place, `f!(out, z)`; `out` and `z` are arrays of z0's shape that belong to the solver (write all of `out`, leave
  `z`). It must be deterministic, and no sample may depend on another.
- `z0`: initial guess, of any shape and kind of array, not empty, with elements of type `Float32` or `Float64`; it is not
  changed. No element is ever accessed singly, so arrays on a device are as good.
- `algorithm`: [`Picard`](@ref), [`Anderson`](@ref), [`Broyden`](@ref), [`LimitedMemoryBroyden`](@ref), [`NewtonKrylov`](@ref),
  [`TrustRegion`](@ref), [`DFSane`](@ref), [`PseudoTransient`](@ref) or [`Relaxation`](@ref).
- `samples`: how many equal, contiguous blocks the elements of z0 in memory are; each converges by itself. The first two
  methods treat each by itself, too; the others solve all of them as one system until the last has converged.
- `jvp!`: Jacobian-vector product in place, `jvp!(out, v, z)`; `nothing`: finite differences, where a method needs it.
- `throw`: whether a solve that does not converge throws; if not, look at the status of what is returned.
- `first_sample`: the number of the first sample in messages; 0 for a caller who counts from there.

All but the first two methods need the package NonlinearSolve, or SteadyStateDiffEq, in the active environment.

# Returns
A [`FixedPointSolution`](@ref).

# Throws
- `ArgumentError`: for a wrong argument, before any work, or for a package that is missing.
- [`SolveError`](@ref): if a sample did not converge. Its message says which, and what to try.
- Whatever `f!` and `jvp!` throw, as it is.

# Example
```julia
cosine!(out, z) = (out .= cos.(z))
fixed_point(cosine!, [1.0], Anderson(rtol = 1e-10)).value   # [0.739085]
```
"""
function fixed_point(
        @nospecialize(f!), z0::AbstractArray, algorithm::AbstractFixedPointAlgorithm;
        samples::Int = 1, jvp! = nothing, throw::Bool = true, first_sample::Int = 1
    )
    T = eltype(z0)
    require(T === Float32 || T === Float64, "elements of z0 must be Float32 or Float64, got $T")
    require(!isempty(z0), "z0 is empty")
    ok = samples >= 1 && length(z0) % samples == 0
    require(ok, "samples must divide the $(length(z0)) elements of z0, got $samples")
    package(algorithm) === nothing || require_package(package(algorithm))
    seconds = @elapsed begin
        map = CountedMap(f!, jvp!, size(z0), samples, 0, 0, nothing)
        z = copyto!(similar(z0, length(z0) ÷ samples, samples), z0)
        progress = Progress(algorithm, z)
        # What was loaded a moment ago is newer than this method.
        Base.invokelatest(search!, algorithm, map, z, progress)
    end
    status, message = verdict(progress, first_sample)
    solution = FixedPointSolution(
        reshape(progress.best, size(z0)), progress.ratio, progress.iterations, Vector{Bool}(progress.statuses .== SUCCESS), status,
        Stats(map.calls, maximum(progress.iterations), 0, seconds, map.products), message,
    )
    throw && status !== SUCCESS && Base.throw(SolveError(solution))
    return solution
end

"""
    search!(algorithm, map, z, progress)

Iterate from the matrix `z`, which may be overwritten, until every sample of `progress` has ended.
"""
function search!(algorithm::Union{Picard, Anderson}, map::CountedMap, z, progress::Progress)
    fz, r = similar(z), similar(z)
    memory = Memory(algorithm, z)
    for iteration in 0:algorithm.max_steps
        apply!(map, fz, z)
        r .= fz .- z
        update!(progress, iteration, z, column_norms(r), column_norms(fz))
        finished(progress) && return nothing
        iteration < algorithm.max_steps && advance!(memory, algorithm, z, fz, r)
    end
    return stop!(progress, MAX_STEPS, algorithm.max_steps)
end

"""
    start!(map, z, progress) -> Bool

Note the start of a method that solves all samples as one system; whether there is anything left to do.

A sample that is not finite there would spoil the norms of all: from now on it is its own equilibrium.
"""
function start!(map::CountedMap, z, progress::Progress)
    fz = apply!(map, similar(z), z)
    update!(progress, 0, z, column_norms(fz .- z), column_norms(fz))
    bad = progress.statuses .== DIVERGED
    if any(bad)
        map.held = row_like(z, bad)
        z .= ifelse.(map.held, zero(eltype(z)), z)
    end
    return !finished(progress)
end

Memory(::Picard, z) = nothing

advance!(::Nothing, algorithm::Picard, z, fz, r) = (z .= fz .- eltype(z)(algorithm.damping) .* r)

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

function Memory(algorithm::Anderson, z)
    n, samples = size(z)
    # One iterate fewer than are combined; a memory of 1 leaves nothing to combine.
    memory = algorithm.memory - 1
    block() = similar(z, n, memory, samples)
    return AndersonMemory(
        block(), block(), zeros(memory, memory, samples), similar(z), similar(z), similar(z), similar(z), -1
    )
end

function advance!(memory::AndersonMemory, algorithm::Anderson, z, fz, r)
    (; image, image_before, r_before, differences, images, gram) = memory
    image .= fz .- eltype(z)(1 - algorithm.mixing) .* r
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
function least_squares(gram, right, count::Int, algorithm::Anderson, ::Type{T}) where {T}
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
