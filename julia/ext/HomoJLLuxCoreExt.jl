module HomoJLLuxCoreExt

import HomoJL
import LuxCore
using Random: Xoshiro

function HomoJL.as_function(layer::LuxCore.AbstractLuxLayer)
    parameters, states = LuxCore.setup(Xoshiro(0), layer)
    calm = LuxCore.testmode(states)
    apply(u, p) = first(LuxCore.apply(layer, u, HomoJL.unflattened(parameters, p), calm))
    return HomoJL.LayerFunction(apply, seed -> HomoJL.flattened(LuxCore.initialparameters(Xoshiro(seed), layer)))
end

end
