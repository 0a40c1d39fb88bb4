# The manual, in build/; a doctest that fails, or a public name that is left out, is an error.
#
#     julia --project=julia/docs -e 'using Pkg; Pkg.develop(path = "julia"); Pkg.instantiate()'
#     julia --project=julia/docs julia/docs/make.jl

using Documenter
using ZeroPaths

makedocs(;
    sitename = "ZeroPaths", modules = [ZeroPaths], authors = "the homojl developers", checkdocs = :public, remotes = nothing,
    format = Documenter.HTML(; edit_link = nothing, repolink = nothing), pages = ["ZeroPaths" => "index.md"],
)
