"""How a student does during its training, and its best state so far."""

from collections.abc import Callable

from torch import Tensor, nn

from sizewise.training.checkpoint import model_copy, restore_model
from sizewise.training.place import Place

__all__ = ["Judge", "Looks"]

Judge = Callable[[nn.Module], float]


class Looks:
    """Keeps the state that a judge liked best.

    Args:
        judge: how good a module is; more is better. It is given modules in eval mode that take and give tensors on the CPU.
        place: where the module is.
    """

    def __init__(self, judge: Judge, place: Place) -> None:
        self.judge, self.place = judge, place
        self.scores: list[float] = []
        self.best = 0
        self.kept: dict[str, Tensor] = {}

    def look(self, model: nn.Module) -> float:
        """Judge the module, which is put into eval mode, and keep its state if none before was better.

        Of equals the last is kept, which has seen more data. No number is the worst.
        """
        found = self.place.agree(model.eval(), lambda module: self.judge(self.place.portable(module)))
        score = found if found == found else float("-inf")
        self.scores.append(score)
        if len(self.scores) == 1 or score >= self.scores[self.best]:
            self.best = len(self.scores) - 1
            self.kept = model_copy(model)
        return score

    @property
    def since(self) -> int:
        """Looks since the best one."""
        return len(self.scores) - 1 - self.best

    def restore(self, model: nn.Module) -> None:
        """Give the module its best state."""
        restore_model(model, self.kept)
