"Nothing but what a first stiff solve would otherwise compile."
module ZeroPathsBDFExt

import LinearSolve
import OrdinaryDiffEqBDF
import ZeroPaths
using PrecompileTools: @compile_workload

@compile_workload ZeroPaths.warm_up_stiff(OrdinaryDiffEqBDF.FBDF, LinearSolve)

end
