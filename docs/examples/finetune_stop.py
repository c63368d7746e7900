# %% [markdown]
# # When to stop fine-tuning
# An encoder of texts is pretrained on six topics and fine-tuned on 160 texts of two classes, a fifth of them mislabelled. Trained for long
# it learns the wrong labels by heart. When to stop is computed from its tangent kernel before the first step, from training rows alone.
# All texts are generated here, and nothing is downloaded. Models of transformers take the same lines.

# %%
import copy
import tempfile

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy, gelu
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from driftway.finetune import Schedule
from driftway.finetune.probe import find_stop, problem
from driftway.finetune.trainer import SpectralStopping

generator = torch.Generator().manual_seed(0)
WORDS, TOPICS, LENGTH, ROWS, BATCH, RATE, EPOCHS = 120, 6, 12, 160, 32, 0.005, 100


def texts(n):
    """Texts as word numbers, and their topics. Each topic has ten words of its own, which make up a third of its texts."""
    topic = torch.randint(TOPICS, (n,), generator=generator)
    own = 10 * topic[:, None] + torch.randint(10, (n, LENGTH), generator=generator)
    common = torch.randint(10 * TOPICS, WORDS, (n, LENGTH), generator=generator)
    return torch.where(torch.rand(n, LENGTH, generator=generator) < 0.35, own, common), topic


class Encoder(nn.Module):
    """A wide layer on the sum of word vectors, and a linear head."""

    def __init__(self, classes):
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(WORDS, 64), nn.Linear(64, 512), nn.Linear(512, classes)

    def forward(self, input_ids, labels=None):
        logits = self.head(gelu(self.body(self.words(input_ids).sum(1) / LENGTH**0.5)))
        return SequenceClassifierOutput(None if labels is None else cross_entropy(logits, labels), logits)


# %% [markdown]
# ## A pretrained encoder
# It learns to tell the six topics apart.

# %%
torch.manual_seed(0)  # of weights
model = Encoder(TOPICS)
adam = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(150):
    words, topic = texts(64)
    loss = model(words, topic).loss
    adam.zero_grad()
    loss.backward()
    adam.step()

# %% [markdown]
# ## The task
# Three topics against three, with one label in five wrong. The body is kept, and gets a new head with random weights.


# %%
def task(n):
    words, topic = texts(n)
    return words, topic % 2 ^ (torch.rand(n, generator=generator) < 0.2).long()


words, labels = task(ROWS)
held_words, held_labels = task(1000)  # for hindsight only
model.head = nn.Linear(512, 2)

# %% [markdown]
# ## From the kernel to the stop
# The kernel of the training rows, the residual of their labels, and the loss of rows that are held out of the kernel in turn. No network is
# trained for it. The stop is the first time at which that loss is within 2 % of its lowest.

# %%
found = problem(model, [{"input_ids": part} for part in words.split(BATCH)], labels, batch=BATCH)
stop = find_stop(found, schedule=Schedule(RATE), rows=ROWS, batch=BATCH)
print(f"foreseen: stop at eta {stop.eta:.3f}, step {stop.steps}, epoch {stop.epochs:.1f}")
for sentence in stop.violations:
    print("-", sentence)


# %% [markdown]
# ## Training that ends there
# `SpectralStopping` does the same as training begins. It counts time with the growth of the kernel, so it may stop a little before or after
# the step that was foreseen. A second run goes on to the end, to see what was missed.


# %%
class Recorder(TrainerCallback):
    """Loss on rows that neither training nor the stop has seen, after each epoch."""

    def __init__(self):
        self.losses = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.losses.append(held_loss(model))


@torch.no_grad()
def held_loss(network):
    return float(network(held_words, held_labels).loss)


def train(callback):
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, optim="sgd", learning_rate=RATE, lr_scheduler_type="constant", num_train_epochs=EPOCHS,
                                 per_device_train_batch_size=BATCH, max_grad_norm=0.0, save_strategy="no", logging_strategy="no",
                                 report_to=[], disable_tqdm=True, use_cpu=True)  # fmt: skip
        rows = [{"input_ids": text, "labels": label} for text, label in zip(words, labels, strict=True)]
        trainer = Trainer(copy.deepcopy(model), args, train_dataset=rows, callbacks=[callback])
        trainer.train()
        return trainer


recorder, stopping = Recorder(), SpectralStopping()
stopped = train(stopping)
train(recorder)
at_stop, before = held_loss(stopped.model), held_loss(model)
best = min(range(EPOCHS), key=recorder.losses.__getitem__)
print(f"stopped after {stopped.state.epoch:.1f} epochs of {EPOCHS} with loss {at_stop:.3f} on new rows, from {before:.3f};"
      f" best in hindsight {recorder.losses[best]:.3f} after {best + 1}; in the end {recorder.losses[-1]:.3f}")  # fmt: skip

# %%
picture = Figure(figsize=(9, 3.6), layout="constrained")
left, right = picture.subplots(1, 2, sharey=True)
curve = stop.validation
left.semilogx(curve.eta[1:], curve.held[1:], color="#0072B2", label="rows held out of the kernel")
left.semilogx(curve.eta[1:], curve.train[1:], color="#999999", label="training rows")
left.axvline(stop.eta, color="#D55E00", label="stop")
left.set(title="foreseen, from the kernel", xlabel="time eta", ylabel="cross entropy")
left.legend(frameon=False)
right.plot(range(EPOCHS + 1), [before, *recorder.losses], color="#0072B2", label="new rows")
right.axvline(stopped.state.epoch, color="#D55E00", label="where SpectralStopping stopped")
right.plot(best + 1, recorder.losses[best], "o", color="#009E73", label="best in hindsight")
right.set(title="what happened", xlabel="epoch")
right.legend(frameon=False)

# %%
assert stopped.state.epoch < EPOCHS / 2
assert abs(stopped.state.global_step / stop.steps - 1) < 0.5
assert at_stop < 1.05 * recorder.losses[best]
assert at_stop < min(before, recorder.losses[-1]) - 0.02
