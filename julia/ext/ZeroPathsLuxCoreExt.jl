module ZeroPathsLuxCoreExt

import ZeroPaths
import LuxCore
using Random: Xoshiro

function ZeroPaths.as_function(layer::LuxCore.AbstractLuxLayer)
    parameters, states = LuxCore.setup(Xoshiro(0), layer)
    calm = LuxCore.testmode(states)
    apply(u, p) = first(LuxCore.apply(layer, u, ZeroPaths.unflattened(parameters, p), calm))
    return ZeroPaths.LayerFunction(apply, seed -> ZeroPaths.flattened(LuxCore.initialparameters(Xoshiro(seed), layer)))
end

end
