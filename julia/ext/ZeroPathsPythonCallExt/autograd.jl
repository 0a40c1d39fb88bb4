# One evaluation of a function in Julia, for PyTorch's autograd.

"Evaluate `job.field`, a `BoundJuliaField`, at the flat tensor `job.state` into `job.out`; `job.t` is a number, or `None` for a map."
evaluate(job::Py) = with_loans(evaluate, job)

function evaluate(job::Py, loans::Loans)
    out, state = borrow(loans, job.out), borrow(loans, job.state)
    t = time_of(job, eltype(state))
    f = borrow_native(loans, job.field, !isnothing(t))
    isnothing(t) ? f(out, state) : f(out, state, t)
    return nothing
end

"""
The vector-Jacobian product of `job.field`: `cotangent' df/dstate` into `job.out`, and `cotangent' df/dp` into each of
`job.parameters_out`, all flat tensors; by the package called `job.differentiation`, or by `job.vjp`.
"""
vjp(job::Py) = with_loans(vjp, job)

function vjp(job::Py, loans::Loans)
    state = borrow(loans, job.state)
    t = time_of(job, eltype(state))
    f = borrow_native(loans, job.field, !isnothing(t))
    targets = borrow_gradients(loans, job.parameters_out, job.field)
    NativeProduct(f, job)(borrow(loans, job.out), targets, borrow(loans, job.direction), state, t)
    return nothing
end

"Flat tensors for gradients by a field's parameters, in their shapes."
borrow_gradients(loans::Loans, tensors::Py, field::Py) =
    map((x, dims) -> reshape(borrow(loans, Py(x)), size_of(dims)), Tuple(tensors), Tuple(field.parameter_dims))

"""
The products with the transposed Jacobian of a function in Julia, on flat vectors: by the package called `job.differentiation`, or by
`job.vjp`, which is given the gradients' `room` where nobody asks for those by the parameters.
"""
mutable struct NativeProduct
    f::NativeFunction
    rule::Any
    room::Any
    checked::Bool
end

function NativeProduct(f::NativeFunction, job::Py)
    own = value_of(job.vjp)
    isnothing(own) && return NativeProduct(f, Val(Symbol(pyconvert(String, job.differentiation))), (), true)
    return NativeProduct(f, own, isnothing(f.p) ? () : f.p isa Tuple ? map(similar, f.p) : (similar(f.p),), false)
end

function (product::NativeProduct)(gradient, gains, cotangent, u, t)
    f = product.f
    gradient, cotangent, u = reshape(gradient, f.dims), reshape(cotangent, f.dims), reshape(u, f.dims)
    (f.calls += 1) >= f.until && listen(f)
    f.running = true
    if product.rule isa Val
        ZeroPaths.pullback!(product.rule, gradient, gains, in_place(f), u, f.p, t, cotangent)
    else
        gains = isempty(gains) ? product.room : gains
        dp = isempty(gains) ? nothing : length(gains) == 1 ? only(gains) : gains
        times = isnothing(t) ? () : (t,)
        product.checked || check_that_it_writes(product, gradient, gains, dp, cotangent, u, times...)
        product.rule(gradient, dp, cotangent, u, f.p, times...)
    end
    f.running = false
    return nothing
end

"Refuse a product of the user's own that leaves elements of its results as they were, or that changes its inputs."
function check_that_it_writes(product::NativeProduct, gradient, gains, dp, cotangent, u, t...)
    product.checked = true
    inputs = (cotangent, u, product.f.p)
    unchanged = deepcopy(inputs)
    for (name, target) in (("du", gradient), map(gain -> ("dp", gain), gains)...)
        left = unwritten(() -> product.rule(gradient, dp, cotangent, u, product.f.p, t...), target)
        left == 0 || throw(ArgumentError("vjp does not write $left of the $(length(target)) elements of $name"))
        same(inputs, unchanged) || throw(ArgumentError("vjp changes the cotangent, the state or the parameters: write into a copy"))
    end
    return nothing
end

"""
    adjoint(job::Py) -> Py

For `JuliaBackend.adjoint`: `ZeroPaths.adjoint!` for `job.field`, with `jvp` as for [`integrate`](@ref), the flat tensors `job.states` and
`job.cotangents` at `job.ts`, and the results in `job.out` and `job.parameters_out`. `job.forward` and `job.backward` have a `method`, a
`request`, and `dense`; `job.rule` is the place of the nodes and weights of a quadrature, or `None`.
"""
adjoint(job::Py) = with_loans(adjoint, job)

function adjoint(job::Py, loans::Loans)
    f, jvp! = borrow_functions(loans, job.field, job.jvp, true)
    field = (; f! = f, jvp!, vjp! = NativeProduct(f, job))
    totals = borrow_gradients(loans, job.parameters_out, job.field)
    states = [borrow(loans, Py(x)) for x in job.states]
    cotangents = [pyis(x, pybuiltins.None) ? nothing : borrow(loans, x) for x in job.cotangents]
    rule = pyis(job.rule, pybuiltins.None) ? nothing : eachcol(reshape(numbers_at(job.rule), :, 2))
    ending, t, nfe, products = ZeroPaths.adjoint!(
        borrow(loans, job.out), totals, field, numbers_at(job.ts), states, cotangents, way(job.forward), way(job.backward), rule,
        parts_of(job),
    )
    return pytuple((uppercase(String(ending)), t, nfe, products))
end

way(job::Py) = (dense = pyis(job.dense, pybuiltins.True);
    ZeroPaths.Way(made(PythonCall.pyjlvalue(job.method)::Chosen, dense), PythonCall.pyjlvalue(job.request)::ZeroPaths.Request, dense))

"The Jacobian-vector product of `job.field` at `job.state` with `job.direction`, into `job.out`; by ForwardDiff."
jvp(job::Py) = with_loans(jvp, job)

function jvp(job::Py, loans::Loans)
    out, state, direction = borrow(loans, job.out), borrow(loans, job.state), borrow(loans, job.direction)
    t = time_of(job, eltype(state))
    f = borrow_native(loans, job.field, !isnothing(t))
    product = ZeroPaths.forward_jvp(f)
    isnothing(t) ? product(out, direction, state) : product(out, direction, state, t)
    return nothing
end

"The function as one that writes its result."
in_place(f::NativeFunction) = f.in_place ? f.f! : OutOfPlace(f.f!)

struct OutOfPlace{F} <: Function
    f::F
end

(f::OutOfPlace)(out, arguments...) = (out .= f.f(arguments...); nothing)

time_of(job::Py, ::Type{T}) where {T} = pyis(job.t, pybuiltins.None) ? nothing : T(pyconvert(Float64, job.t))
