"""
Solves for homojl's Python side: ZeroPaths' functions on memory that PyTorch owns.

States cross the border as flat vectors: tensors are borrowed for the time of a solve, functions in Python are called with buffers that
PyTorch owns (small states) or with views of Julia's own vectors (large ones), and results are written into tensors that were
made for them. Nothing here computes.
"""
module ZeroPathsPythonCallExt

import ZeroPaths
using ZeroPaths: SciMLBase
using PythonCall: PythonCall, C, Py, pybuiltins, pyconvert, pydel!, pyis, pytuple

include("loans.jl")
include("callbacks.jl")
include("natives.jl")
include("algorithms.jl")
include("solves.jl")
include("ensemble.jl")
include("autograd.jl")

const calls = map(
    Direct, (;
        integrate, adjoint, ensemble, fixed_point, trace_path, evaluate, vjp, jvp, evaluate_source, first_parameters, describe,
        load, lookup, chosen, request, matrix, tracker,
    ),
)
const names = join(keys(calls), ' ')

include("precompile.jl")

end
