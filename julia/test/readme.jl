# Every block of Julia code in the README runs, top to bottom, in one module.
readme = read(joinpath(@__DIR__, "..", "README.md"), String)
blocks = [m.captures[1] for m in eachmatch(r"```julia\n(.*?)```"s, readme)]
@test !isempty(blocks)
sandbox = Module(:ReadmeSandbox)
for block in blocks
    @test (include_string(sandbox, block); true)
end
