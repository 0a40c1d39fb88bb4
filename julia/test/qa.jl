using Aqua: Aqua

# ZeroPaths starts no tasks, and the check for ones that stay alive needs a registry, that is a network.
Aqua.test_all(ZeroPaths; persistent_tasks = false)

@testset "everything public is documented" begin
    documentation(name) = string(Base.Docs.doc(Base.Docs.Binding(ZeroPaths, name)))
    @test isempty(filter(name -> occursin("No documentation found", documentation(name)), names(ZeroPaths)))
end

# JET follows the compiler's internals, and does not load on every Julia.
const HAS_JET = try
    @eval using JET: JET
    true
catch e
    @warn "JET does not load on Julia $VERSION; its tests are left out" exception = e
    false
end

HAS_JET && @testset "JET, $T" for T in (Float32, Float64)
    problem = typeof(NonlinearProblem((du, u, p) -> (du .= -u), T[1, 2]))
    for algorithm in (SamplewisePicard, SamplewiseAnderson)
        JET.test_call(solve, (problem, algorithm); target_modules = (ZeroPaths,))
    end
    path = typeof(homotopy(NonlinearProblem((du, u, p) -> (du .= u), T[1, 2])))
    JET.test_call(solve, (path, ZeroPathTracker); target_modules = (ZeroPaths,))
end
