# Functions in Julia.

"""
A function written in Julia, on flat vectors: a field `f!(out, state, p, t)` or `f(state, p, t)`, or a map `f!(out, state, p)`
or `f(state, p)`.

`dims` is the size that the function sees its states in: the tensor's shape, reversed. Every twentieth of a second or so
Python is asked whether the user pressed Ctrl-C. `running` stays true where the function has thrown.
"""
mutable struct NativeFunction{F, P, N}
    f!::F
    p::P
    dims::NTuple{N, Int}
    in_place::Bool
    checked::Bool
    running::Bool
    calls::Int
    until::Int
    listened::UInt64
end

function NativeFunction(f!, p, dims, timed::Bool)
    arguments = timed ? 4 : 3
    in_place = !(f! isa ZeroPaths.LayerFunction) && takes(f!, arguments)
    in_place || takes(f!, arguments - 1) || throw(
        ArgumentError(
            timed ? "a field of an ODE is f!(du, u, p, t) or f(u, p, t); this function takes other numbers of arguments" :
                "a map is f!(out, z, p) or f(z, p); this function takes other numbers of arguments"
        )
    )
    return NativeFunction(f!, p, dims, in_place, false, false, 0, 1, time_ns())
end

"Whether a function has a method of that many arguments."
takes(f, n::Int) = any(m -> m.nargs - 1 == n || (m.isva && m.nargs - 2 <= n), methods(f))

(f::NativeFunction)(out, state, t) = evaluate!(f, out, state, t)
(f::NativeFunction)(out, state) = evaluate!(f, out, state)

function evaluate!(f::NativeFunction, out, state, t...)
    (f.calls += 1) >= f.until && listen(f)
    f.running = true
    f.checked || isempty(out) || check_that_it_writes(f, out, state, t...)
    call!(f, out, state, t...)
    f.running = false
    return nothing
end

function call!(f::NativeFunction, out, state, t...)
    if f.in_place
        f.f!(reshape(out, f.dims), reshape(state, f.dims), f.p, t...)
    else
        value = f.f!(reshape(state, f.dims), f.p, t...)
        value isa AbstractArray && size(value) == f.dims || throw(
            ArgumentError("the function must return an array of size $(f.dims), and returned a $(summary(value))")
        )
        copyto!(out, value)
    end
    return nothing
end

# Differentiation calls with numbers of its own, which nothing has to be checked on.
check_that_it_writes(f::NativeFunction, out, state, t...) = nothing

"Refuse a function that leaves elements of `out` as they were, such as one that returns its value instead, or that changes its inputs."
function check_that_it_writes(f::NativeFunction, out::AbstractVector{T}, state, t...) where {T <: AbstractFloat}
    f.checked = true
    unchanged = deepcopy((state, f.p))
    left = f.in_place ? unwritten(() -> call!(f, out, state, t...), out) : (call!(f, out, state, t...); 0)
    f.running = false
    left == 0 || throw(
        ArgumentError(
            "the function does not write $left of the $(length(out)) elements of its first argument: assign with " *
                "`du .= ...`, with the dot, or leave that argument out, as in `f(u, p, t) = ...`, and return the value"
        )
    )
    same((state, f.p), unchanged) || throw(ArgumentError("the function changes its state or its parameters: write into a copy"))
    f.running = true
    return nothing
end

same(a::Tuple, b::Tuple) = all(map(same, a, b))
same(a::AbstractArray, b::AbstractArray) = mapreduce(isequal, &, a, b; init = true)
same(::Nothing, ::Nothing) = true

"How many elements of an array an action leaves as they are."
function unwritten(action, out::AbstractArray{T}) where {T}
    left = trues(size(out))
    for poison in (T(NaN), T(-123.4375))
        fill!(out, poison)
        action()
        left .&= Array(isequal.(out, poison))
        any(left) || break
    end
    return count(left)
end

function listen(f::NativeFunction)
    check_signals()
    now = time_ns()
    # So many calls until the next time that it will be a twentieth of a second from now, if they take as long.
    pace = (now - f.listened) / max(1, f.calls)
    f.until, f.calls, f.listened = clamp(round(Int, 5.0e7 / max(pace, 1.0)), 1, 4096), 0, now
    return nothing
end

const CHECK_SIGNALS = Ref{Ptr{Cvoid}}(C_NULL)

function check_signals()
    ccall(CHECK_SIGNALS[], Cint, ()) == 0 || PythonCall.Core.pythrow()
    return nothing
end

__init__() = CHECK_SIGNALS[] = Base.Libc.Libdl.dlsym(C.CTX.lib_ptr, :PyErr_CheckSignals)

"The value of Julia source evaluated in a module of its own."
function evaluate_source(source::String)
    # Bound in Main, where nothing collects it: compiled code refers to a module without keeping it alive.
    home = Core.eval(Main, Expr(:module, true, gensym(:JuliaField), Expr(:block)))
    value = try
        Base.include_string(home, source, "JuliaField")
    catch e
        throw(CodeError(e isa LoadError ? e.error : e))
    end
    # Methods of packages that the source has just loaded.
    f! = Base.invokelatest(ZeroPaths.as_function, value)
    f! isa Function || !isempty(methods(f!)) ||
        throw(ArgumentError("the source must end in a function or a layer of Lux, and ends in a $(typeof(value))"))
    return f!
end

"The first parameters of a layer, all in one vector, as the bytes of doubles."
first_parameters(f!, seed::Int) = packed(convert(Vector{Float64}, ZeroPaths.first_parameters(f!, seed)))

"""
    borrow_native(loans, field::Py, timed) -> NativeFunction

From a `BoundJuliaField` of homojl; its tensors are borrowed and seen in their shapes reversed: none as `nothing`, one as itself,
several as a tuple.
"""
function borrow_native(loans::Loans, field::Py, timed::Bool)
    vectors = Tuple(borrow(loans, Py(x)) for x in field.parameters)
    arrays = map((v, dims) -> reshape(v, size_of(dims)), vectors, Tuple(field.parameter_dims))
    p = isempty(arrays) ? nothing : length(arrays) == 1 ? only(arrays) : arrays
    native = NativeFunction(PythonCall.pyjlvalue(field.julia), p, size_of(field.dims), timed)
    native.checked = pyis(field.checked, pybuiltins.True)
    push!(loans.natives, native)
    return native
end

is_native(f::Py) = PythonCall.pyhasattr(f, "julia")
