"Nothing but what a first stiff solve would otherwise compile."
module ZeroPathsSDIRKExt

import LinearSolve
import OrdinaryDiffEqSDIRK
import ZeroPaths
using PrecompileTools: @compile_workload

@compile_workload ZeroPaths.warm_up_stiff(OrdinaryDiffEqSDIRK.TRBDF2, LinearSolve)

end
