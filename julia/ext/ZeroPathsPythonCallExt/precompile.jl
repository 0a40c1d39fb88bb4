# No workload can run here, since Python is not there while packages are compiled: signatures are named instead.
precompile(PythonCall.JlWrap.pyjlany_call, (Direct, Py, Py))
# Methods of PythonCall's that only a workload keeps.
ZeroPaths.@compile_workload begin
    for T in (Module, String, Int, Type, typeof(calls), Chosen, ZeroPaths.Request)
        precompile(Py, (T,))
    end
    foreach(f -> precompile(f, (Py, Int)), (PythonCall.pygetitem, getindex))
    foreach(f -> precompile(f, (Py,)), (call_for_address, pydel!))
    precompile(pyis, (Py, Py))
    precompile(additions, (Type, Vector{Pair{Symbol, Any}}, Bool))
    precompile(make, (Type, Vector{Any}, Vector{Pair{Symbol, Any}}, Vector{Vector{Any}}))
end
for solve in (integrate, adjoint, fixed_point, trace_path, evaluate, vjp, request, tracker, ensemble)
    precompile(solve, (Py,))
end
precompile(chosen, (Type, Py))
precompile(made, (Chosen, Bool))
precompile(load, (String, String))
precompile(lookup, (Module, String))
for T in (Float32, Float64)
    V = Vector{T}
    for K in 1:2
        precompile(PyFunction, (Loans, Py, V, NTuple{K, V}))
        precompile(PyFunction, (Loans, Py, Nothing, NTuple{K, V}))
        precompile(Tuple{PyFunction{T, V, K}, Vararg{V, K + 1}})
    end
    precompile(Tuple{PyFunction{T, V, 1}, V, V, T})
    precompile(Tuple{PyFunction{T, V, 2}, V, V, V, T})
    for method in ZeroPaths.STEPPERS
        precompile(integrate_on, (Any, Any, V, V, Vector{Float64}, typeof(method), ZeroPaths.Request, Bool, Nothing, Any, Py))
    end
end
