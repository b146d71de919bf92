import pytest
import torch
from torch import Tensor

from neurofleet.errors import ResourceError
from neurofleet.study.tape import NotTapedError, record

BEFORE = torch.full((2, 3), 2.0)


def squares(inputs: dict[str, Tensor], step: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    values = inputs["values"].detach().requires_grad_()
    loss = (torch.einsum("kbi,kio->kbo", values, inputs["weights"]).relu() * BEFORE[0, 0] * step).sum()
    return loss, [*torch.autograd.grad(loss, [values]), None]


def inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"values": (2, 4, 3), "weights": (2, 3, 5)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_a_tape_makes_of_other_tensors_what_the_function_makes() -> None:
    first, tape = record(squares, inputs(0), torch.tensor(1.0))
    assert torch.equal(first[0], squares(inputs(0), torch.tensor(1.0))[0])
    for seed in range(1, 4):
        loss, gradients = tape(inputs(seed), torch.tensor(float(seed)))
        expected, (gradient, _) = squares(inputs(seed), torch.tensor(float(seed)))
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients[0], gradient)
        assert gradients[1] is None
        assert not loss.requires_grad


def test_a_tape_sees_what_became_of_tensors_that_it_keeps() -> None:
    kept = torch.ones(3)
    _, tape = record(lambda given: given * kept, torch.ones(3))
    kept.fill_(5)
    assert tape(torch.ones(3)).tolist() == [5, 5, 5]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's compiler's own
def test_a_compiled_tape_makes_the_same_and_sees_what_became_of_tensors() -> None:
    kept = torch.ones(5)

    def function(given: dict[str, Tensor], step: Tensor) -> Tensor:
        return squares(given, step)[1][0] @ given["weights"] * kept  # type: ignore[operator]

    _, tape = record(function, inputs(0), torch.tensor(1.0), compiled=True)
    for seed in range(1, 3):
        kept.fill_(seed)
        torch.testing.assert_close(
            tape(inputs(seed), torch.tensor(2.0)), function(inputs(seed), torch.tensor(2.0)).detach()
        )


def test_a_machine_that_cannot_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise torch._dynamo.exc.BackendCompilerFailed(print, RuntimeError("no compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refused)
    _, tape = record(lambda given: given * 2, torch.ones(3), compiled=True)
    with pytest.raises(ResourceError, match=r"no compiler.*search\.fuse=stack"):
        tape(torch.ones(3))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda given: given * float(given.sum()), "_local_scalar_dense"),
        (lambda given: given[given > 0], "index"),
        (lambda given: given + torch.rand(3), "rand"),
        (lambda given: given.mul_(2), "changes what was there"),
        (lambda given: BEFORE[0].add_(0) * given, "changes what was there"),
    ],
    ids=["number", "mask", "chance", "input", "constant"],
)
def test_what_follows_from_values_is_refused(function: object, words: str) -> None:
    with pytest.raises(NotTapedError, match=words):
        record(function, torch.ones(3))  # type: ignore[arg-type]


def test_a_function_that_does_something_else_the_next_time_is_found_out() -> None:
    factors = iter([2.0, 3.0])
    _, tape = record(lambda given: given * next(factors), torch.ones(3))
    with pytest.raises(NotTapedError, match="others at the next step"):
        tape(torch.ones(3))


def test_gradients_of_linear_layers_lie_as_their_weights_do() -> None:
    def gradient(weights: Tensor, rows: Tensor) -> Tensor:
        weights = weights.detach().requires_grad_()
        return torch.autograd.grad((rows @ weights.transpose(1, 2)).square().sum(), weights)[0]

    given = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    first, tape = record(gradient, *given)
    assert not first.is_contiguous()
    assert tape(*given).is_contiguous()
    torch.testing.assert_close(tape(*given), first)
