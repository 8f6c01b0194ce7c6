"""How a student does during its training, and its best state so far."""

from collections.abc import Callable

from torch import Tensor, nn

from sizewise.training.average import Average
from sizewise.training.checkpoint import model_copy, restore_model
from sizewise.training.place import Place

__all__ = ["Judge", "Looks"]

Judge = Callable[[nn.Module], float]


class Looks:
    """Keeps the state that a judge liked best.

    Args:
        judge: how good a module is; more is better. It is given modules in eval mode that take and give tensors on the CPU.
        place: where the module is.
        model: that is trained.
    """

    def __init__(self, judge: Judge, place: Place, model: nn.Module) -> None:
        self.judge, self.place, self.model = judge, place, model
        self.average = Average(model)
        self.scores: list[float] = []
        self.best = 0
        self.kept: dict[str, Tensor] = {}

    def look(self) -> None:
        """Judge the module's average, itself before any step, in eval mode, and keep that state if none before was better.

        Of equals the last is kept, which has seen more data. No number is the worst.
        """
        with self.average.shown():
            found = self.place.agree(self.model.eval(), lambda module: self.judge(self.place.portable(module)))
            self.scores.append(found if found == found else float("-inf"))
            if len(self.scores) == 1 or self.scores[-1] >= self.scores[self.best]:
                self.best = len(self.scores) - 1
                self.kept = model_copy(self.model)

    @property
    def since(self) -> int:
        """Looks since the best one."""
        return len(self.scores) - 1 - self.best

    def restore(self) -> None:
        """Give the module its best state."""
        restore_model(self.model, self.kept)
