"""Recurrent cells over whole sequences, and what sequences of different lengths need.

Elman's network (1990), the LSTM (Hochreiter and Schmidhuber 1997; with a forget gate, Gers et al. 2000) and the GRU
(Cho et al. 2014), with the weights and equations of torch's modules.

There are two ways through a cell.  Ordinary tensors take torch's own kernel (cuDNN on a GPU, oneDNN for an LSTM in
float32), which has no rule for `torch.func.vmap`; so within torch.func the cell is written out, and a test holds both
ways to each other.

Neither sees a mask.  A state depends on the steps before it alone, so what comes after a sequence's end changes nothing
that is read; and the backward direction gets every sequence reversed within its own length, so its padding comes last.

Shape suffixes: B batch, T steps, I inputs, H units, G gates times units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError, nearest
from neurofleet.families._layers import Dropout, is_off
from neurofleet.steps import Context

State = tuple[Tensor, ...]  # [B, H] each: of an LSTM (hidden, cell), else (hidden,)
Step = Callable[[Tensor, Tensor, State], State]  # (from the input, from the state, the state) -> the next state


def _tanh_step(inputs_BG: Tensor, recurrent_BG: Tensor, state: State) -> State:
    return (torch.tanh(inputs_BG + recurrent_BG),)


def _lstm_step(inputs_BG: Tensor, recurrent_BG: Tensor, state: State) -> State:
    enter, forget, candidate, leave = (inputs_BG + recurrent_BG).chunk(4, dim=-1)
    cell_BH = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(candidate)
    return torch.sigmoid(leave) * torch.tanh(cell_BH), cell_BH


def _gru_step(inputs_BG: Tensor, recurrent_BG: Tensor, state: State) -> State:
    reset, update, candidate = inputs_BG.chunk(3, dim=-1)
    reset_state, update_state, candidate_state = recurrent_BG.chunk(3, dim=-1)
    new_BH = torch.tanh(candidate + torch.sigmoid(reset + reset_state) * candidate_state)
    update_BH = torch.sigmoid(update + update_state)
    return (new_BH + update_BH * (state[0] - new_BH),)


# By name: torch's mode and kernel, and one step written out.
CELLS: dict[str, tuple[str, Callable[..., Any], Step]] = {
    "rnn": ("RNN_TANH", torch.rnn_tanh, _tanh_step),
    "lstm": ("LSTM", torch.lstm, _lstm_step),
    "gru": ("GRU", torch.gru, _gru_step),
}


def checked_cell(name: str) -> str:
    if name not in CELLS:
        raise ConfigError(f"family.cell needs a known cell, got {name!r}; {nearest(name, CELLS)}")
    return name


class Recurrence(nn.RNNBase):
    """One layer of a cell in one direction.

    In: [B, T, I] and a state (zeros without one).  Out: the hidden states [B, T, H], and the state after the last step.

    It starts with orthogonal recurrent weights (Saxe et al. 2014), Glorot's for the inputs, and an LSTM's forget gate
    open (Jozefowicz et al. 2015).
    """

    def __init__(self, cell: str, num_inputs: int, hidden: int) -> None:
        mode, self._kernel, self._step = CELLS[cell]
        self._num_states = 2 if cell == "lstm" else 1
        super().__init__(mode, num_inputs, hidden, batch_first=True)

    def reset_parameters(self) -> None:
        size = self.hidden_size
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name.startswith("bias"):
                    weight.zero_()
                for gate in weight.split(size) if weight.ndim == 2 else ():
                    initialise = nn.init.orthogonal_ if name.startswith("weight_hh") else nn.init.xavier_uniform_
                    initialise(gate)
            if self._num_states == 2:
                self.get_parameter("bias_ih_l0")[size : 2 * size] = 1.0

    def forward(self, inputs_BTI: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        weights = [getattr(self, f"{kind}_l0") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        if state is None:
            state = (inputs_BTI.new_zeros(len(inputs_BTI), self.hidden_size),) * self._num_states
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return self._written_out(inputs_BTI, state, weights)
        first = tuple(part.unsqueeze(0) for part in state)
        # In training mode a kernel keeps what its gradient needs, whatever mode the module is in.
        flags = (True, 1, 0.0, torch.is_grad_enabled(), False, True)
        outputs_BTH, *last = self._kernel(inputs_BTI, first if len(first) > 1 else first[0], weights, *flags)
        return outputs_BTH, tuple(part.squeeze(0) for part in last)

    def _written_out(self, inputs_BTI: Tensor, state: State, weights: list[Tensor]) -> tuple[Tensor, State]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        outputs = []
        for inputs_BG in F.linear(inputs_BTI, weight_ih, bias_ih).unbind(1):
            state = self._step(inputs_BG, F.linear(state[0], weight_hh, bias_hh), state)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), state


def leading(there_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The steps before the first that is not there: a mask [B, T], and how many they are, int64 [B], at least one."""
    mask_BT = there_BT.long().cumprod(dim=1)
    return mask_BT.bool(), mask_BT.sum(dim=1).clamp(min=1)


def pick(values_BTH: Tensor, places: Tensor) -> Tensor:
    """The vectors at `places` [B, N] of each row's own steps: [B, N, H]."""
    size, num_steps = values_BTH.shape[:2]
    rows = torch.arange(size, device=places.device).unsqueeze(1) * num_steps
    # One selection of rows: the gradient of `gather` adds number by number.
    return values_BTH.flatten(0, 1).index_select(0, (places + rows).flatten()).unflatten(0, places.shape)


def turned(values_BTH: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Each row's steps in reverse order within its own length, padding in its place; twice is as before."""
    if lengths_B is None:
        return values_BTH.flip(1)
    steps_T = torch.arange(values_BTH.shape[1], device=values_BTH.device)
    places_BT = lengths_B.unsqueeze(1) - 1 - steps_T
    return pick(values_BTH, torch.where(places_BT >= 0, places_BT, steps_T))


def last_of(values_BTH: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Each row's last step, [B, H]; without lengths none has padding."""
    return values_BTH[:, -1] if lengths_B is None else pick(values_BTH, lengths_B.unsqueeze(1) - 1).squeeze(1)


def mean_of(values_BTH: Tensor, mask_BT1: Tensor | None) -> Tensor:
    """The mean over each row's steps, [B, H]."""
    if mask_BT1 is None:
        return values_BTH.mean(dim=1)
    return (mask_BT1.transpose(1, 2) @ values_BTH).squeeze(1) / mask_BT1.sum(dim=1).clamp(min=1)


class StepDropout(Dropout):
    """Dropout of the same units at all steps of a sequence (Gal and Ghahramani 2016)."""

    def forward(self, inputs_BTH: Tensor, context: Context | None) -> Tensor:
        if context is None or not context.training or is_off(self.rate):
            return inputs_BTH
        keep_BH = counter.bernoulli(context.key(self.site), context.rows, tuple(inputs_BTH.shape[2:]), 1 - self.rate)
        return inputs_BTH * (keep_BH.to(inputs_BTH.dtype) / (1 - self.rate)).unsqueeze(1)


class MaskedConvolution(nn.Module):
    """Convolution over time, layer norm over a sequence's own steps and all channels, ReLU; zeros after the end.

    In, out: [B, T, channels] and the mask [B, T, 1], of ones if there is none.  A longer padding changes nothing.
    """

    def __init__(self, num_inputs: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(num_inputs, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, inputs_BTC: Tensor, mask_BT1: Tensor | None) -> Tensor:
        if mask_BT1 is None:
            mask_BT1 = torch.ones_like(inputs_BTC[:, :, :1])
        values_BTC = self.convolution(inputs_BTC.transpose(1, 2)).transpose(1, 2) * mask_BT1
        count = mask_BT1.sum(dim=(1, 2), keepdim=True) * values_BTC.shape[2]
        mean = values_BTC.sum(dim=(1, 2), keepdim=True) / count
        centred_BTC = (values_BTC - mean) * mask_BT1
        variance = centred_BTC.square().sum(dim=(1, 2), keepdim=True) / count
        return F.relu(centred_BTC * torch.rsqrt(variance + 1e-5) * self.scale + self.shift) * mask_BT1
