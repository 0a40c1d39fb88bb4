# What is borrowed from Python for the time of one call.

"""
What one call has borrowed from Python: memory of tensors, references to objects, views of Julia's vectors.

All of it is given back at the end of the call, not when the garbage collector happens to run, which knows nothing of the memory
behind a reference.
"""
struct Loans
    references::Vector{Py}
    natives::Vector{Any}
end

"An exception of the user's own code in Julia."
struct CodeError <: Exception
    error::Any
end

"`action(job, loans)` for a job of Python's, on PyTorch's device and stream where its tensors are on one."
function with_loans(action, job::Py)
    loans = Loans([], [])
    try
        device = value_of(job.device)
        return isnothing(device) ? action(job, loans) : ZeroPaths.on_device(() -> action(job, loans), device)
    catch e
        # Python's exceptions, Ctrl-C among them, pass through as they are.
        any(native -> native.running, loans.natives) && !(e isa PythonCall.PyException) ? throw(CodeError(e)) : rethrow()
    finally
        foreach(pydel!, loans.references)
    end
end

"The memory of a flat tensor as a vector; the tensor is kept until the end of the call."
function borrow(loans::Loans, tensor::Py)
    push!(loans.references, tensor)
    T, n = element_type(tensor), integer_of(tensor, :numel)
    pyis(tensor.is_cuda, pybuiltins.True) && return ZeroPaths.device_vector(T, address(tensor), n)
    return unsafe_wrap(Array, Ptr{T}(address(tensor)), n)
end

element_type(tensor::Py) = integer_of(tensor, :element_size) == 4 ? Float32 : Float64
address(tensor::Py) = integer_of(tensor, :data_ptr)

"What a method of a tensor returns; the bound method, which would keep the tensor alive, is let go of at once."
function integer_of(tensor::Py, method::Symbol)
    bound = getproperty(tensor, method)
    value = call_for_address(bound)
    pydel!(bound)
    return value
end

"The vector of length n at an address in the memory of `like`'s kind."
vector_at(::Vector{T}, address::Int, n::Int) where {T} = unsafe_wrap(Array, Ptr{T}(address), n)
vector_at(::AbstractVector{T}, address::Int, n::Int) where {T} = ZeroPaths.device_vector(T, address, n)

"""
A function of the bridge, as Python calls it: numbers, strings and Julia's own values come as they are, and all else as a `Py`.

PythonCall's own way through its rules of conversion would have to be compiled at every start, which takes a second.
"""
struct Direct
    f::Any
end

function PythonCall.JlWrap.pyjlany_call(direct::Direct, arguments::Py, _::Py)
    return Py(direct.f(Any[simple(arguments[i]) for i in 0:(PythonCall.pylen(arguments) - 1)]...))::Py
end

"A value of one of the simple kinds; any other as it is."
function simple(x::Py)
    pyis(x, pybuiltins.None) && return nothing
    PythonCall.pyisjl(x) && return PythonCall.pyjlvalue(x)
    pyis(x, pybuiltins.True) && return true
    pyis(x, pybuiltins.False) && return false
    PythonCall.Core.pyisint(x) && return pyconvert(Int, x)
    PythonCall.Core.pyisfloat(x) && return pyconvert(Float64, x)
    return PythonCall.Core.pyisstr(x) ? pyconvert(String, x) : x
end

value_of(x::Py) = (value = simple(x); value isa Py ? pyconvert(Any, value) : value)
size_of(dims::Py) = Tuple(pyconvert(Vector{Int}, dims))

"What the pairs of a name and a value say, as keyword arguments."
options_of(pairs::Py) = Pair{Symbol, Any}[Symbol(pyconvert(String, pair[0])) => value_of(pair[1]) for pair in pairs]

"What an exception is called, and its message; \"CodeError\" for one of the user's own code."
describe(exception) = string(nameof(typeof(exception))), message_of(exception)
describe(exception::CodeError) = "CodeError", message_of(exception.error)

message_of(exception) = sprint(showerror, exception)
message_of(::StackOverflowError) = "StackOverflowError: the function calls itself without end"
message_of(exception::LoadError) = message_of(exception.error)
message_of(exception::CompositeException) = message_of(first(exception.exceptions))
message_of(exception::TaskFailedException) = message_of(exception.task.exception)
message_of(exception::MethodError) = first(split(sprint(showerror, exception), "\n\nClosest candidates"; limit = 2))
