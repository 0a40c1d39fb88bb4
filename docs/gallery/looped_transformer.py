# %% [markdown]
# # A small looped transformer as an equilibrium
#
# A looped transformer applies one transformer block again and again to a sequence. Where the sequence no longer
# changes it is an equilibrium, and can be found and differentiated as one: any number of loops, the memory of one.
# The task here is to say for each place of a sequence of signs whether the signs up to it multiply to plus or minus.

# %%
import torch
from matplotlib import pyplot as plt
from torch import nn

import homojl as hj

torch.manual_seed(0)
LENGTH, WIDTH = 6, 16


class Block(nn.Module):
    """Attention to earlier places, then a perceptron, with the embedded input x added each time."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH).triu(1).bool())

    def forward(self, z, x):
        z = self.norm1(x + z + self.attention(z, z, z, attn_mask=self.mask)[0])
        return self.norm2(x + self.mlp(z))


class Signs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, WIDTH)
        self.place = nn.Parameter(0.5 * torch.randn(LENGTH, WIDTH))
        self.loop = hj.nn.Equilibrium(Block(), hj.Anderson(rtol=1e-2, max_steps=25), jacobian_weight=0.1)
        self.read = nn.Linear(WIDTH, 1)

    def forward(self, signs):
        return self.read(self.loop(self.embed(signs[..., None]) + self.place))[..., 0]


def batch(count):
    signs = torch.randint(0, 2, (count, LENGTH)) * 2.0 - 1
    return signs, (signs.cumprod(1) > 0).float()


# %%
model = Signs()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
losses = []
for _ in range(90):
    signs, wanted = batch(64)
    loss = nn.functional.binary_cross_entropy_with_logits(model(signs), wanted) + hj.nn.regularization(model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
model.eval()
with torch.no_grad():
    signs, wanted = batch(500)
    right = ((model(signs) > 0) == (wanted > 0)).float().mean(0)
print("right at each place:", [f"{100 * r:.0f} %" for r in right.tolist()])
print(model.loop.last)

# %% [markdown]
# Later places are harder: all signs before them count. How far the answers come in 90 steps is in the right picture;
# the guess of a coin is 50 %.

# %%
figure, (left, right_axes) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot(losses)
left.set(xlabel="step", ylabel="loss", ylim=(0, None))
right_axes.bar(range(1, LENGTH + 1), 100 * right)
right_axes.axhline(50, color="0.4", ls="--")
right_axes.set(xlabel="place in the sequence", ylabel="right answers [%]", ylim=(0, 100))
