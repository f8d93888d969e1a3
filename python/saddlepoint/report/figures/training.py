"""Loss, gradient norm and accuracy over a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import expected
from ..theme import Figure, add_line, axis_type, ends, envelope, finish, number, real, require

if TYPE_CHECKING:
    import numpy.typing as npt

    from ...history import History

    Array = npt.NDArray[Any]

__all__ = ["training_curves"]


def training_curves(history: History) -> Figure:
    """Loss of every update and every epoch, gradient norm below, accuracy if it was measured.

    Raises
    ------
    ValueError
        If the history holds no update.

    Examples
    --------
    >>> import saddlepoint as sp
    >>> nan = np.full(2, np.nan)
    >>> history = sp.History(
    ...     step=np.arange(1, 5), loss=np.array([2.3, 1.1, 0.6, 0.4]),
    ...     gradient_norm=np.array([1.0, 0.7, 0.3, 0.2]), learning_rate=np.full(4, 0.1),
    ...     epoch_step=np.array([2, 4]), train_loss=np.array([1.7, 0.5]),
    ...     validation_loss=np.array([1.8, 0.7]), validation_accuracy=nan, seconds=np.ones(2))
    >>> print(sp.report.caption(training_curves(history)))
    Over 4 updates the training loss goes from 2.3 to 0.4. The validation loss is lowest, 0.7, \
after update 4. The gradient norm below is largest, 1, at update 1 and ends at 0.2.
    """
    step, loss, norm = map(real, (history.step, history.loss, history.gradient_norm))
    epoch, train = real(history.epoch_step), real(history.train_loss)
    valid, accuracy = real(history.validation_loss), real(history.validation_accuracy)
    if not step.size:
        raise ValueError(expected("history", "at least one update", "none"))

    rows = 3 if np.isfinite(accuracy).any() else 2
    figure = require("plotly.subplots").make_subplots(
        rows=rows,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.07,
        row_heights=[0.5, 0.28, 0.22][:rows],
    )
    add_line(figure, *envelope(step, loss), "each update", "blue-faint", width=1.2, row=1)
    add_line(figure, epoch, train, "training, per epoch", "blue", markers="circle", row=1)
    add_line(figure, epoch, valid, "validation", "orange", "dash", markers="diamond", row=1)
    positive = np.where(norm > 0, norm, np.nan)
    add_line(figure, *envelope(step, positive), "gradient norm", "green", width=1.2, row=2)
    if rows == 3:
        add_line(figure, epoch, accuracy, "validation accuracy", "purple", markers="circle", row=3)
        figure.update_yaxes(title_text="accuracy", tickformat=".0%", row=3, col=1)
    figure.update_yaxes(title_text="loss", type=axis_type(loss, train, valid), row=1, col=1)
    figure.update_yaxes(title_text="gradient norm", type="log", row=2, col=1)
    figure.update_xaxes(exponentformat="none", separatethousands=True)
    figure.update_xaxes(title_text="update", row=rows, col=1)

    words = f"Over {step.size:,} updates the training loss goes {ends(loss)}."
    if (broken := np.flatnonzero(~np.isfinite(loss))).size:
        words += f" The loss is not finite at update {step[broken[0]]:,.0f}."
    if np.isfinite(valid).any():
        best = int(np.nanargmin(valid))
        words += f" The validation loss is lowest, {number(valid[best])}, "
        words += f"after update {epoch[best]:,.0f}."
    if rows == 3:
        best = int(np.nanargmax(accuracy))
        words += f" The best validation accuracy is {accuracy[best]:.1%}."
    if np.isfinite(norm).any():
        top, last = int(np.nanargmax(norm)), norm[np.isfinite(norm)][-1]
        words += f" The gradient norm below is largest, {number(norm[top])}, at update "
        words += f"{step[top]:,.0f} and ends at {number(last)}."
    if zeros := int(np.count_nonzero(norm == 0)):
        words += f" It is exactly zero at {zeros:,} updates, which a logarithmic axis leaves out."
    return finish(figure, words, height=620 if rows == 3 else 520)
