module ZeroPathsRecipesBaseExt

using ZeroPaths: ZeroPath
using RecipesBase: RecipesBase, @recipe

"lambda against the elements of the state, or those of `idxs`, along the path."
@recipe function f(path::ZeroPath; idxs = eachindex(vec(path.states[1])))
    xguide --> "lambda"
    yguide --> "state"
    label --> permutedims(["z[$i]" for i in idxs])
    path.lambdas, [vec(z)[i] for z in path.states, i in idxs]
end

end
