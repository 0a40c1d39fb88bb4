# Functions in Python.

# So many of Julia's vectors are viewed as tensors in one solve; a solver that uses more of them gets buffers.
const MOST_VIEWS = 64

"""
A function in Python of `K` states, and of the time if `time` is not `nothing`; see `Callback` in homojl's tensors.py.

Called as ZeroPaths calls its functions: a field `f(du, u, t)` and its product `f(out, v, u, t)`, a map `f(out, z)` and its product
`f(out, v, z)`. Exceptions in Python pass through as `PyException`.
"""
struct PyFunction{T, V <: AbstractVector{T}, K}
    callback::Py
    buffered::Py
    time::Union{Nothing, V}
    inputs::NTuple{K, V}
    views::Union{Nothing, Dict{Ptr{T}, Py}}
    loans::Loans
end

function borrow_function(loans::Loans, callback::Py)
    time = pyis(callback.time, pybuiltins.None) ? nothing : borrow(loans, callback.time)
    return PyFunction(loans, callback, time, Tuple(borrow(loans, Py(x)) for x in callback.inputs))
end

function PyFunction(loans::Loans, callback::Py, time, inputs::NTuple{K, V}) where {K, T, V <: AbstractVector{T}}
    views = pyis(callback.views_pay, pybuiltins.True) ? Dict{Ptr{T}, Py}() : nothing
    return PyFunction{T, V, K}(callback, callback.buffered, time, inputs, views, loans)
end

(f::PyFunction)(out, u::AbstractVector) = call!(f, out, u)
(f::PyFunction)(out, v::AbstractVector, u::AbstractVector) = call!(f, out, u, v)
(f::PyFunction)(out, u::AbstractVector, t::Real) = (fill!(f.time, t); call!(f, out, u))
(f::PyFunction)(out, v::AbstractVector, u::AbstractVector, t::Real) = (fill!(f.time, t); call!(f, out, u, v))

function call!(f::PyFunction{T, V, K}, out, states::Vararg{Any, K}) where {T, V, K}
    if !isnothing(f.views) && all(x -> x isa Vector{T}, (out, states...)) && can_view(f.views, out, states)
        pydel!(f.callback.viewed(view_of(f, out), map(x -> view_of(f, x), states)...))
        return nothing
    end
    foreach(copyto!, f.inputs, states)
    copyto!(out, vector_at(first(f.inputs), call_for_address(f.buffered), length(out)))
    return nothing
end

can_view(views, out, states) = length(views) + 1 + length(states) <= MOST_VIEWS ||
    all(x -> haskey(views, pointer(x)), (out, states...))

function view_of(f::PyFunction, x::Vector)
    return get!(f.views, pointer(x)) do
        # The tensor keeps the vector, which the function may hold for longer than the solve lasts.
        view = f.callback.view(Int(UInt(pointer(x))), Py(Direct(x)))
        push!(f.loans.references, view)
        view
    end
end

"The integer that a Python function without arguments returns; a tenth of the time of `pyconvert(Int, f())`."
function call_for_address(f::Py)
    result = C.PyObject_CallObject(PythonCall.getptr(f), C.PyNULL)
    result == C.PyNULL && PythonCall.Core.pythrow()
    address = C.PyLong_AsLongLong(result)
    C.Py_DecRef(result)
    return Int(address)
end
