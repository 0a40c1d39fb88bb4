# %% [markdown]
# # Accuracy against evaluations of a trained model
#
# How a trained model is solved is no part of its weights. A HomoODE that was trained with Bosh3 at a tolerance of
# 1e-2 answers the test images here by other methods, tolerances and step sizes: what does an answer cost, and what is
# it worth?

# %%
import torch
from matplotlib import pyplot as plt

import homojl as hj

torch.manual_seed(0)
data = hj.load_dataset("digits")
x, x_test = ((images.float() / 16 - 0.3) / 0.37 for images in (data.x_train, data.x_test))
model = hj.create_model(
    "homoode",
    input_shape=(1, 8, 8),
    n_classes=10,
    channels=8,
    algorithm=hj.Bosh3(rtol=1e-2, atol=1e-2),
    backend="pytorch",
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
for _ in range(80):
    some = torch.randint(len(x), (64,))
    loss = torch.nn.functional.cross_entropy(model(x[some]), data.y_train[some])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# A trained model takes another method as its `algorithm`. The reference are 32 steps of RK4.

# %%
METHODS = {
    "Euler": [hj.Euler(step_size=1 / n) for n in (1, 2, 4, 8)],
    "RK4": [hj.RK4(step_size=1 / n) for n in (1, 2, 4)],
    "Bosh3": [hj.Bosh3(rtol=t, atol=t) for t in (1e-1, 1e-2, 1e-3)],
    "Tsit5": [hj.Tsit5(rtol=t, atol=t) for t in (1e-1, 1e-2, 1e-3)],
}


@torch.no_grad()
def answers(algorithm):
    model.algorithm = algorithm
    logits, solution = model(x_test, return_solution=True)
    return logits, solution.stats.nfe


model.eval()
exact, _ = answers(hj.RK4(step_size=1 / 32))
found = {}
for name, algorithms in METHODS.items():
    found[name] = []
    for algorithm in algorithms:
        logits, nfe = answers(algorithm)
        accuracy = (logits.argmax(1) == data.y_test).float().mean().item()
        found[name].append((nfe, 100 * accuracy, ((logits - exact).norm() / exact.norm()).item()))
        print(f"{name:<6} {nfe:>3} evaluations: {100 * accuracy:.1f} %, logits off by {found[name][-1][2]:.1e}")
assert found["RK4"][-1][2] < found["Euler"][-1][2]

# %% [markdown]
# The logits come closer to the exact solution's with each evaluation; the accuracy does not change any more long
# before.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for name, points in found.items():
    nfe, accuracy, error = zip(*points, strict=True)
    left.plot(nfe, accuracy, "o-", label=name)
    right.loglog(nfe, error, "o-", label=name)
left.set(ylabel="test accuracy [%]")
right.set(ylabel="relative error of the logits")
for axes in (left, right):
    axes.set(xlabel="evaluations of the field", xscale="log")
    axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"], minor=False)
    axes.minorticks_off()
left.legend(fontsize=8)
