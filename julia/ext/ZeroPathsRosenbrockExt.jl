"Nothing but what a first stiff solve would otherwise compile."
module ZeroPathsRosenbrockExt

import ZeroPaths
import LinearSolve
import OrdinaryDiffEqRosenbrock
using PrecompileTools: @compile_workload

@compile_workload ZeroPaths.warm_up_stiff(OrdinaryDiffEqRosenbrock.Rodas5P, LinearSolve)

end
