"Nothing but what a first stiff solve would otherwise compile."
module HomoJLRosenbrockExt

import HomoJL
import LinearSolve
import OrdinaryDiffEqRosenbrock
using PrecompileTools: @compile_workload

@compile_workload HomoJL.warm_up_stiff(OrdinaryDiffEqRosenbrock.Rodas5P, LinearSolve)

end
