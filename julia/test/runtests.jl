# Groups, chosen by the environment variable HOMOJL_TEST_GROUP: Core, QA, or All (the default).

using ZeroPaths
using LinearAlgebra: mul!, norm
using Test

const GROUP = get(ENV, "HOMOJL_TEST_GROUP", "All")
GROUP in ("All", "Core", "QA") || error("HOMOJL_TEST_GROUP must be All, Core or QA, got $GROUP")

if GROUP in ("All", "Core")
    include("helpers.jl")
    include("problems.jl")
    @testset "Core" begin
        @testset "accuracy and order" include("accuracy.jl")
        @testset "step sequence" include("steps.jl")
        @testset "agreement with the PyTorch backend" include("agreement.jl")
        @testset "kinds of arrays" include("arrays.jl")
        @testset "failures and arguments" include("failures.jl")
        @testset "stiff fields" include("stiff.jl")
        @testset "events" include("events.jl")
        @testset "saving" include("saving.jl")
        @testset "paths" include("path.jl")
        @testset "equilibria" include("equilibrium.jl")
        @testset "SciML's problems and solutions" include("sciml.jl")
        @testset "adjoints" include("adjoint.jl")
        @testset "pullbacks" include("pullback.jl")
        @testset "ensembles in kernels" include("ensemble.jl")
        @testset "README" include("readme.jl")
    end
end

if GROUP in ("All", "QA")
    @testset "QA" include("qa.jl")
end
