using Aqua: Aqua

# HomoJL starts no tasks, and the check for ones that stay alive needs a registry, that is a network.
Aqua.test_all(HomoJL; persistent_tasks = false)

@testset "everything public is documented" begin
    documentation(name) = string(Base.Docs.doc(Base.Docs.Binding(HomoJL, name)))
    @test isempty(filter(name -> occursin("No documentation found", documentation(name)), names(HomoJL)))
end
