# %% [markdown]
# # A DEQ layer in a CNN
#
# A DEQ layer applies one block to its state `z` again and again, with the layer's input `x` each time, until the
# state no longer changes: `z = block(z, x)`. It is as deep as it takes, with the weights of one block. Here it stands
# in a small CNN in the place of a stack of residual blocks, and the rest of the code is what it would be without.

# %%
import torch
from matplotlib import pyplot as plt
from torch import nn

import homojl as hj

torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, z, x):
        return torch.tanh(self.conv(z) + x)


deq = hj.nn.Equilibrium(Block(8), hj.Anderson(rtol=1e-2), jacobian_weight=1.5)
net = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), deq, nn.Flatten(), nn.Linear(128, 10)
)

# %% [markdown]
# The data are the 1,797 digits of 8 x 8 pixels that come with homojl; the loop is any loop. `regularization` adds to
# the loss what the layer's `jacobian_weight` asks for: it keeps the block one that settles, and its solves short.

# %%
data = hj.load_dataset("digits")
x, x_test = ((images.float() / 16 - 0.3) / 0.37 for images in (data.x_train, data.x_test))
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
losses, evaluations = [], []
for _ in range(80):
    some = torch.randint(len(x), (64,))
    loss = nn.functional.cross_entropy(net(x[some]), data.y_train[some]) + hj.nn.regularization(net)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    evaluations.append(deq.last.nfe)
net.eval()
with torch.no_grad():
    accuracy = (net(x_test).argmax(1) == data.y_test).float().mean().item()
print(f"accuracy on {len(x_test)} test images: {100 * accuracy:.1f} %")
print(deq.last)
assert accuracy > 0.85

# %% [markdown]
# The number of evaluations of the block is not fixed: it is what the slowest image of the batch takes to reach the
# tolerance of 1e-2.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot(losses)
left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
right.plot(evaluations, drawstyle="steps-mid")
right.set(xlabel="step", ylabel="evaluations of the block", ylim=(0, None))
