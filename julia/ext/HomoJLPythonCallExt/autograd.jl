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
    gradient, u, cotangent = (reshape(x, f.dims) for x in (borrow(loans, job.out), state, borrow(loans, job.direction)))
    shapes = Tuple(size_of(x) for x in job.field.parameter_dims)
    targets = map((x, dims) -> reshape(borrow(loans, Py(x)), dims), Tuple(job.parameters_out), shapes)
    own = value_of(job.vjp)
    f.running = true
    if isnothing(own)
        method = Val(Symbol(pyconvert(String, job.differentiation)))
        HomoJL.pullback!(method, gradient, targets, in_place(f), u, f.p, t, cotangent)
    else
        p_gradient = isempty(targets) ? nothing : length(targets) == 1 ? only(targets) : targets
        isnothing(t) ? own(gradient, p_gradient, cotangent, u, f.p) : own(gradient, p_gradient, cotangent, u, f.p, t)
    end
    f.running = false
    return nothing
end

"The Jacobian-vector product of `job.field` at `job.state` with `job.direction`, into `job.out`; by ForwardDiff."
jvp(job::Py) = with_loans(jvp, job)

function jvp(job::Py, loans::Loans)
    out, state, direction = borrow(loans, job.out), borrow(loans, job.state), borrow(loans, job.direction)
    t = time_of(job, eltype(state))
    f = borrow_native(loans, job.field, !isnothing(t))
    product = HomoJL.forward_jvp(f)
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
